"""One rank fails: the first cause is reported once, with its rank, and all processes end within seconds."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from minigptv2.cluster.attempts import run_journal
from minigptv2.cluster.failure import Failure, read_failure
from minigptv2.cluster.recorder import AttemptRecorder
from minigptv2.cluster.rendezvous import free_port
from minigptv2.cluster.watchdog import Watchdog
from minigptv2.errors import CrashLoopError, ExitCode, HangError, RankError
from tests import preloaded
from tests.ranks import rank_environment

LIMIT_S = 15
KINDS = {int(ExitCode.RANK_LOST): "lost", int(ExitCode.HANG): "hang"}
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
def test_all_ranks_exit_with_the_first_cause(tmp_path: Path, fault: str, bad_rank: int, code: int, says: str) -> None:
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
    failure = Failure(**json.loads((tmp_path / "failure.json").read_text()))
    assert (failure.rank, failure.kind, failure.exit_code) == (bad_rank, KINDS.get(code, "error"), code)
    assert failure.host == socket.gethostname() and failure.pid is not None and failure.phase
    assert str(failure).splitlines()[0] == causes[0]
    if fault == "hang":
        stacks = (tmp_path / "stacks" / f"rank{bad_rank}.txt").read_text()
        assert "in hang" in stacks and (tmp_path / "stacks" / f"rank{1 - bad_rank}.txt").exists()


def test_a_rank_exits_even_if_nothing_can_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No folder for the stacks, a failure.json that cannot be written, and a full disk under the journal."""

    def refuse(text: str, code: int) -> None:
        raise OSError("no space left")

    def end(code: int) -> None:
        raise SystemExit(code)

    (tmp_path / "stacks").write_text("a file where the folder should be")
    (tmp_path / "failure.json").mkdir()
    watch = Watchdog(tmp_path, hang_s=1, slow_s=1, silence_s=1, before_exit=refuse)
    monkeypatch.setattr(os, "_exit", end)
    hang = Failure("1", "hang", "RankError", "stuck", int(ExitCode.RANK_LOST), 0, "node1", "step 3")
    with pytest.raises(SystemExit) as ended:
        watch._exit(hang)
    assert ended.value.code == ExitCode.RANK_LOST
    printed = capfd.readouterr()
    assert str(hang) in printed.out and f"cannot write {tmp_path / 'failure.json'}: the cause is in" in printed.out
    assert "while exiting: FileExistsError" in printed.err and "while exiting: OSError: no space left" in printed.err


def watchdog_of(rank: int, run: Path) -> Watchdog:
    watch = Watchdog(run, hang_s=1, slow_s=1, silence_s=1)
    watch._rank, watch._start = rank, "7.0"
    return watch


def test_every_rank_reports_that_rank_0_is_lost_and_the_first_report_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node of ranks 0 and 1 died, so neither can report."""
    delays: list[float] = []
    monkeypatch.setattr(time, "sleep", delays.append)
    for rank in (2, 3, 900):
        watch = watchdog_of(rank, tmp_path)
        watch._report(watch._lost_store(f"its store does not answer, says {rank}"))
        assert f"RankError: its store does not answer, says {rank}" in capsys.readouterr().out
    report = read_failure(tmp_path, "7.0")
    assert report is not None and report.message.endswith("says 2")
    assert delays == sorted(delays) and delays[0] < delays[1] < delays[2] == 2


def test_the_report_about_a_lost_rank_0_uses_its_last_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    first, other = watchdog_of(0, tmp_path), watchdog_of(1, tmp_path)
    first.set_phase("step 12", steady=True)
    assert other._lost_store("gone").host == "10.0.0.1"
    other._heard[0] = ("", 0.0, first._heartbeat())
    lost = other._lost_store("gone")
    assert (lost.host, lost.phase, lost.pid) == ("node1", "step 12", os.getpid())


class SlowStore:
    """A store whose calls return only after a while, as under load. Holds one heartbeat and no failure."""

    def __init__(self, called: threading.Event) -> None:
        self._called = called

    def set(self, key: str, value: str) -> None:
        self._called.set()
        time.sleep(1.5)

    def check(self, keys: list[str]) -> bool:
        return False


def test_no_thread_is_inside_the_store_when_the_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the interpreter aborts: `terminate called without an active exception`."""
    called = threading.Event()
    with Watchdog(tmp_path, hang_s=60, slow_s=60, silence_s=60) as watch:
        monkeypatch.setattr(watch, "_store", SlowStore(called))
        assert called.wait(10)
    assert [thread.name for thread in threading.enumerate() if "watchdog" in thread.name] == []


def test_ctrl_c_is_recorded_as_interrupted_and_writes_no_failure(tmp_path: Path) -> None:
    watch = watchdog_of(0, tmp_path)
    failure = watch._failure_of(KeyboardInterrupt())
    attempts = AttemptRecorder(tmp_path, 3, active=True)
    attempts.begin(0, {})
    watch._report(failure)
    attempts.record_end(str(failure), failure.exit_code)
    assert not (tmp_path / "failure.json").exists()
    assert (run_journal(tmp_path).read()[-1].reason, failure.exit_code) == ("interrupted", 130)


def test_starts_without_progress_are_a_crash_loop(tmp_path: Path) -> None:
    def begin(step: int, config: dict[str, object], error: BaseException | None) -> None:
        attempts = AttemptRecorder(tmp_path, 3, active=True)
        try:
            with attempts:
                attempts.begin(step, config)
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            return

    for _ in range(2):
        begin(10, {"a": 1}, RuntimeError("no such device"))
    begin(10, {"a": 1}, KeyboardInterrupt())  # by a user: resets the count
    for _ in range(2):
        begin(10, {"a": 1}, RuntimeError("no such device"))
    begin(20, {"a": 1}, RuntimeError("no such device"))  # progress
    for _ in range(2):
        begin(20, {"a": 1}, RuntimeError("no such device"))
    with pytest.raises(CrashLoopError, match="3 starts in a row from step 20 .* RuntimeError: no such device"):
        begin(20, {"a": 1}, None)
    begin(20, {"a": 2}, None)  # another config
    assert [attempt.start_step for attempt in run_journal(tmp_path).read()] == [10] * 5 + [20] * 4
    assert run_journal(tmp_path).read()[-1].reason == "finished"


def test_a_start_that_was_killed_counts_as_one_without_progress(tmp_path: Path) -> None:
    for _ in range(3):
        AttemptRecorder(tmp_path, 3, active=True).begin(0, {})  # its end is never recorded
    with pytest.raises(CrashLoopError, match="ended with no error reported"):
        AttemptRecorder(tmp_path, 3, active=True).begin(0, {})
    AttemptRecorder(tmp_path, 0, active=True).begin(0, {})
