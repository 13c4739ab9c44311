"""One rank fails: the first cause is said once, with its rank, and all processes are gone in seconds (R11)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minigptv2.cluster.attempts import Attempts, read_attempts
from minigptv2.cluster.rendezvous import free_port
from minigptv2.errors import CrashLoopError, HangError, RankError
from tests import preloaded
from tests.ranks import rank_environment

LIMIT_S = 15
CASES = [
    ("throw", 1, 1, "ValueError: the thirteenth sample"),
    ("throw", 0, 1, "ValueError: the thirteenth sample"),
    ("run_out_of_memory", 1, 1, "memory"),
    ("kill", 1, RankError.exit_code, "its process is gone: killed"),
    ("kill", 0, RankError.exit_code, "RankError"),
    ("stop", 1, RankError.exit_code, "silent for"),
    ("stop", 0, RankError.exit_code, "RankError"),
    ("hang", 1, HangError.exit_code, "faults.py"),
    ("leave", 1, RankError.exit_code, "its process is gone"),
]


@pytest.mark.parametrize(("fault", "bad_rank", "code", "says"), CASES, ids=lambda value: str(value)[:12])
def test_everyone_leaves_with_the_first_cause(tmp_path: Path, fault: str, bad_rank: int, code: int, says: str) -> None:
    world, port = 2, free_port()
    arguments = {"folder": str(tmp_path), "fault": fault, "bad_rank": bad_rank}
    arguments |= {"hang_s": 4} if fault == "hang" else {}
    processes = [
        preloaded.start(
            "tests.engine.faults:train_and_fail",
            log=tmp_path / f"rank{rank}.log",
            number=rank,
            environment=rank_environment(rank, world, port),
            **arguments,
        )
        for rank in range(world)
    ]
    try:
        codes = [process.wait(60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    ended = time.time()
    began = float((tmp_path / f"failing{bad_rank}").read_text())
    logs = [(tmp_path / f"rank{rank}.log").read_text() for rank in range(world)]
    everything = "\n".join(logs)
    assert ended - began < LIMIT_S, everything
    assert codes[1 - bad_rank] == code, everything
    causes = [line for line in everything.splitlines() if line.startswith(f"[rank {bad_rank} (")]
    assert len(causes) == 1 and says in causes[0], everything
    assert f"[rank {1 - bad_rank} (" not in everything
    if fault == "hang":
        stacks = (tmp_path / "stacks" / f"rank{bad_rank}.txt").read_text()
        assert "in hang" in stacks and (tmp_path / "stacks" / f"rank{1 - bad_rank}.txt").exists()


def test_starts_without_progress_are_a_crash_loop(tmp_path: Path) -> None:
    def begin(step: int, config: dict[str, object], error: BaseException | None) -> None:
        attempts = Attempts(tmp_path, 3, active=True)
        try:
            with attempts:
                attempts.begin(step, config)
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            return

    for _ in range(2):
        begin(10, {"a": 1}, RuntimeError("no such device"))
    begin(10, {"a": 1}, KeyboardInterrupt())  # ended by hand: starts the count anew
    for _ in range(2):
        begin(10, {"a": 1}, RuntimeError("no such device"))
    begin(20, {"a": 1}, RuntimeError("no such device"))  # progress
    for _ in range(2):
        begin(20, {"a": 1}, RuntimeError("no such device"))
    with pytest.raises(CrashLoopError, match="3 starts in a row from step 20 .* RuntimeError: no such device"):
        begin(20, {"a": 1}, None)
    begin(20, {"a": 2}, None)  # another config
    assert [attempt.step for attempt in read_attempts(tmp_path)] == [10] * 5 + [20] * 4
    assert read_attempts(tmp_path)[-1].ended == "finished"


def test_a_start_that_was_killed_counts_as_one_without_progress(tmp_path: Path) -> None:
    for _ in range(3):
        Attempts(tmp_path, 3, active=True).begin(0, {})  # and never a word of its end
    with pytest.raises(CrashLoopError, match="ended without a word"):
        Attempts(tmp_path, 3, active=True).begin(0, {})
    Attempts(tmp_path, 0, active=True).begin(0, {})
