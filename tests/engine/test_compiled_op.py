"""A build's lock that a killed process left behind does not hold later runs."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import threading
from pathlib import Path

from minigptv2.engine.compiled_op import building


def test_a_dead_builds_lock_is_removed_and_a_living_ones_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "op"
    folder.mkdir()
    (folder / "lock").touch()
    with building(folder):
        assert not (folder / "lock").exists()
    living = open(folder / "lock", "w")  # noqa: SIM115  # as torch holds it while it builds
    entered = threading.Event()

    def build() -> None:
        with building(folder):
            entered.set()

    waiting = threading.Thread(target=build)
    waiting.start()
    assert not entered.wait(0.5)
    (folder / "lock").unlink()
    living.close()
    waiting.join(10)
    assert entered.is_set()


def _hold(folder: Path, entered: multiprocessing.synchronize.Event) -> None:
    with building(folder):
        entered.set()
        threading.Event().wait()


def test_one_process_builds_at_a_time_and_a_killed_one_lets_the_next_in(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    entered = fork.Event()
    first = fork.Process(target=_hold, args=(tmp_path / "op", entered))
    first.start()
    assert entered.wait(10)
    second_entered = threading.Event()

    def second() -> None:
        with building(tmp_path / "op"):
            second_entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not second_entered.wait(0.3)
    first.kill()
    thread.join(10)
    assert second_entered.is_set()
    first.join()
