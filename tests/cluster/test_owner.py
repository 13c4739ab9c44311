"""Tests that a run folder has one owner at a time: on one machine, on two, after deaths, and in races."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minigptv2.cluster import owner as owner_module
from minigptv2.cluster.owner import Owner, RunOwner, this_process
from minigptv2.errors import ConfigError
from minigptv2.run_folder import RunFolder

HELD = "is in use by another start: "


def take(run: Path) -> RunOwner:
    made = RunOwner(run)
    made.take()
    return made


def holder(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sorted(RunFolder(run).owners.glob("*.json"))[-1].read_text())
    return found


def written(run: Path, **changed: Any) -> Path:
    """The file of an owner that is this process, with some fields changed."""
    folder = RunFolder(run).owners
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "00000001.json"
    file.write_text(json.dumps({**this_process({}).__dict__, **changed}))
    return file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("BEAT_S", 0.05),
        ("STALE_S", 0.6),
        ("REQUEUE_STALE_S", 0.3),
        ("_REQUEUE_S", 1.2),
        ("_POLL_S", 0.02),
    ):
        monkeypatch.setattr(owner_module, name, value)


def test_a_second_start_is_refused_with_the_holder(tmp_path: Path) -> None:
    with take(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"{HELD}.*, process {os.getpid()}, since 20") as error:
                take(tmp_path / "run")
            assert error.value.exit_code == 2
        assert len(list((tmp_path / "run").rglob("*.json"))) == 1  # the refused ones left nothing
    with take(tmp_path / "run"):
        pass
    assert holder(tmp_path / "run")["released"]


def test_the_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with take(tmp_path), pytest.raises(ConfigError, match=f"{HELD}.*, process {os.getpid()}, job 77, since "):
        take(tmp_path)


def test_a_dead_owner_is_replaced_at_once(tmp_path: Path) -> None:
    code = f"from minigptv2.cluster.owner import *; RunOwner(Path({str(tmp_path)!r})).take(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not holder(tmp_path)["released"]
    began = time.monotonic()
    with take(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid() and time.monotonic() - began < 1


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_owner_is_replaced_and_a_stopped_one_is_not(sent: signal.Signals, tmp_path: Path) -> None:
    taken = f"from minigptv2.cluster.owner import *; RunOwner(Path({str(tmp_path)!r})).take()"
    code = f"{taken}; print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(sent)
    if sent == signal.SIGSTOP:
        with pytest.raises(ConfigError, match=HELD):
            take(tmp_path)
        process.kill()
    else:
        time.sleep(0.1)  # a zombie until it is waited for
        take(tmp_path).__exit__(None, None, None)
    process.wait()


def test_another_process_with_the_same_id_is_not_the_owner(tmp_path: Path) -> None:
    written(tmp_path, process_start="1")
    take(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\xff\xfe"])
def test_a_file_that_a_killed_start_left_half_written_does_not_stand_in_the_way(
    content: bytes, tmp_path: Path, quick: None
) -> None:
    written(tmp_path).write_bytes(content)
    take(tmp_path).__exit__(None, None, None)


def beating(file: Path, seconds: float, *, release: bool = False) -> multiprocessing.Process:
    """A process that sets the time of `file`, as an owner on another node does, for some seconds."""

    def work() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            os.utime(file)
            time.sleep(0.05)
        if release:
            file.write_text(json.dumps({**json.loads(file.read_text()), "released": True}))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_an_owner_on_another_node_with_a_heartbeat_is_alive(tmp_path: Path, quick: None) -> None:
    file = written(tmp_path, machine="another", host="node7", pid=1)
    process = beating(file, 5)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"{HELD}node7, process 1, since"):
        take(tmp_path)
    assert time.monotonic() - began < 0.6  # as soon as a heartbeat is seen
    process.kill()
    process.join()


@pytest.mark.parametrize("skew_s", [0, -500, 500])
def test_an_owner_on_another_node_without_a_heartbeat_is_replaced_whatever_its_clock(
    skew_s: float, tmp_path: Path, quick: None
) -> None:
    file = written(tmp_path, machine="another", pid=os.getpid())
    os.utime(file, (time.time() + skew_s, time.time() + skew_s))
    began = time.monotonic()
    with take(tmp_path):
        assert 0.5 < time.monotonic() - began < 3 and holder(tmp_path)["machine"] != "another"


def test_an_old_heartbeat_of_another_node_needs_no_watching(tmp_path: Path) -> None:
    file = written(tmp_path, machine="before the last boot")
    os.utime(file, (time.time() - 3600, time.time() - 3600))
    take(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize(("alive_s", "release", "taken"), [(0.7, True, True), (0.3, False, True), (5.0, False, False)])
def test_a_requeued_job_waits_for_its_earlier_start(
    alive_s: float, release: bool, taken: bool, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    file = written(tmp_path, machine="another", job="77", restart=0)
    process = beating(file, alive_s, release=release)
    if taken:
        take(tmp_path).__exit__(None, None, None)
    else:
        with pytest.raises(ConfigError, match="job 77"):
            take(tmp_path)
    process.kill()
    process.join()


def test_starts_of_one_job_are_told_apart_by_their_restarts() -> None:
    first = Owner("h", "m", 1, "", 0.0, "77", 0)
    assert first.is_requeued_as(replace(first, restart=1)) and not first.is_requeued_as(first)
    assert not first.is_requeued_as(replace(first, job="78", restart=1))
    assert not replace(first, job="").is_requeued_as(replace(first, job="", restart=1))
    elastic = this_process({"TORCHELASTIC_RUN_ID": "my-run", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert (elastic.job, elastic.restart) == ("my-run", 2)
    assert this_process({"TORCHELASTIC_RUN_ID": "none"}).job == ""


def test_an_owner_that_was_suspended_for_too_long_ends_before_it_writes(tmp_path: Path) -> None:
    code = (
        "from minigptv2.cluster import owner; from pathlib import Path; import time; owner.BEAT_S = 0.05;"
        f"held = owner.RunOwner(Path({str(tmp_path)!r})); held.take(); print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    second = RunFolder(tmp_path).owners / "00000002.json"
    second.write_text(json.dumps({**this_process({}).__dict__, "host": "node8"}))
    assert process.wait(10) == 2
    assert "was taken over by node8" in process.stdout.read()


def test_locks_of_the_file_system_are_not_used_and_links_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refused(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    monkeypatch.setattr(os, "link", refused)
    with take(tmp_path), pytest.raises(ConfigError, match=HELD):
        take(tmp_path)
    with take(tmp_path):
        pass


def test_a_repeated_request_of_a_network_file_system_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "the answer was lost", str(target))

    monkeypatch.setattr(os, "link", twice)
    take(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "loop/run", "x" * 300])
def test_a_place_that_cannot_be_used_is_one_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="cannot be used: [A-Z].* \\(/") as error:
        take(tmp_path / place)
    assert "\n" not in str(error.value) and sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_file_is_one_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ConfigError, match=f"cannot be used: {os.strerror(number)}"):
        take(tmp_path)


def race(run: Path, barrier: Any, outcomes: Any, seed: int, how: str) -> None:
    """A start: takes the folder at a random moment, writes alone for a moment, and ends in some way."""
    chance = random.Random(seed)
    barrier.wait()
    time.sleep(chance.random() * 0.01)
    held = RunOwner(run)
    try:
        held.take()
    except ConfigError:
        outcomes.put("refused")
        return
    log = run / "log"
    before = log.read_text() if log.is_file() else ""
    for _ in range(5):
        with open(log, "a") as stream:
            stream.write(f"{seed}\n")
        time.sleep(0.002)
    alone = log.read_text() == before + f"{seed}\n" * 5
    outcomes.put("alone" if alone else "mixed")
    outcomes.close()
    outcomes.join_thread()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    with held:
        pass


@pytest.mark.parametrize("how", ["released", "killed"])
def test_races_have_one_winner_at_a_time(how: str, tmp_path: Path) -> None:
    """Twenty races of three starts in one folder, the end of each race being the state that the next one finds."""
    context = multiprocessing.get_context("fork")
    for number in range(20):
        barrier, outcomes = context.Barrier(3), context.Queue()
        starts = [
            context.Process(target=race, args=(tmp_path, barrier, outcomes, 10 * number + n, how)) for n in range(3)
        ]
        for start in starts:
            start.start()
        ended = [outcomes.get(timeout=20) for _ in starts]
        for start in starts:
            start.join()
        assert "mixed" not in ended and "alone" in ended, (number, ended)
        assert len(list(RunFolder(tmp_path).owners.glob("0*.json"))) <= 3
