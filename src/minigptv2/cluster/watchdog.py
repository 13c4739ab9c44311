"""Detects failed or hung ranks, reports the first cause and ends all ranks with its exit code.

A thread of each rank writes heartbeats to the process group's store and looks there for a failure. A rank that raises
an exception writes it there. A rank that is killed or stopped sends no heartbeats, and one without progress hangs. The
first cause is printed and written to `failure.json` once, by the rank it came from if that rank still can. Then all
ranks exit, whatever collective they wait in. The watchdog has its own connection to the store, so the collectives of
the training thread do not block it.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

from minigptv2.cluster import distributed
from minigptv2.cluster.failure import Failure, start_id, write_failure
from minigptv2.cluster.processes import host_name, namespace, state_of
from minigptv2.errors import INTERRUPTED, HangError, MiniGPTv2Error, RankError, RequeueExit, exit_code_of
from minigptv2.run_folder import RunFolder
from minigptv2.secrets import redact

BEAT_S = 1.0
"""Seconds between heartbeats."""
_SLOW = 6
"""Factor on `silence_s` while loading, saving and evaluating, where single calls may keep a process busy."""
_STORE_TIMEOUT_S = 10
"""Time limit of each call of the store."""
_MAX_DELAY_S = 2.0
"""Longest wait of a rank that lets lower ranks write the report first."""
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "Gloo", "gloo", "Socket Timeout")
"""Parts of error messages on a rank that only lost its connection to another one."""
_WAITING = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")


@dataclass(frozen=True)
class _Heartbeat:
    """State of one rank. `namespace` is equal for processes that see each other's ids."""

    sent_at: float
    host: str
    namespace: str
    pid: int
    phase: str
    steady: bool
    seconds_in_phase: float
    stuck: bool
    line: str
    waiting: bool


class Watchdog:
    """`with Watchdog(...) as watch:` around all that ranks do together. `watch.set_phase(...)` marks progress.

    `hang_s` bounds the time between two marks during an ordinary step, `slow_s` in any other phase (loading, saving,
    evaluating, first steps). Heartbeats missed for `silence_s` mean that a rank is lost. `before_exit` is called with
    the failure's text and exit code on every rank that exits because of a failure.
    """

    def __init__(
        self,
        run: Path,
        *,
        hang_s: float,
        slow_s: float,
        silence_s: float,
        before_exit: Callable[[str, int], None] = lambda text, code: None,
    ) -> None:
        self._run = run
        self._limits = {True: hang_s, False: slow_s}
        self._silence_s = silence_s
        self._before_exit = before_exit
        self._rank, self._world = distributed.rank(), distributed.world_size()
        self._host, self._pid = host_name(), os.getpid()
        self._start = start_id(os.environ)
        self._mark: tuple[str, bool, float] = ("starting", False, time.monotonic())
        self._main = threading.main_thread().ident
        self._done = threading.Event()
        self._exiting = threading.Lock()
        self._lost_connection = False
        self._heard: dict[int, tuple[str, float, _Heartbeat]] = {}
        self._last_round = time.monotonic()
        self._store: dist.Store | None = None
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("watchdog", self._watch), ("store watchdog", self._watch_store))
        ]

    def set_phase(self, phase: str, *, steady: bool = False) -> None:
        """Mark that the training thread enters a phase. A `steady` one is an ordinary step, bounded by `hang_s`."""
        self._mark = (phase, steady, time.monotonic())

    def __enter__(self) -> Watchdog:
        if self._world > 1:
            self._start = str(distributed.agree(self._start))
            self._store = _connect()
            self._round()  # the first heartbeat
            distributed.barrier()
            self._round()  # now every rank has been heard of
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RequeueExit):
            distributed.barrier()  # no rank stops listening while another may still fail
        elif self._world > 1:
            self._failed(error)
        else:
            self._write(self._failure_of(error))
        self._done.set()
        # A thread that returns from the store while the interpreter ends would abort the process (pytorch issue 38228).
        for thread in self._threads:
            thread.join(2 * _STORE_TIMEOUT_S)
        faulthandler.cancel_dump_traceback_later()

    def _failed(self, error: BaseException) -> None:
        """Report the training thread's exception, unless this rank only lost another one. Then exit."""
        failure = self._failure_of(error)
        if _is_lost_connection(error):
            self._lost_connection = True  # the rank that failed is about to be detected
            self.set_phase(f"looking for the rank that failed in: {self._mark[0]}")
            time.sleep(self._silence_s + 4 * BEAT_S)
        elif self._rank and isinstance(error, MiniGPTv2Error):
            time.sleep(BEAT_S / 2)  # most of these are raised on all ranks alike, and rank 0 reports them
        first = self._declare(failure)
        if first.rank == self._rank and not isinstance(error, MiniGPTv2Error):
            _guarded(lambda: _print("".join(traceback.format_exception(error))))
        self._exit(first)

    def _failure_of(self, error: BaseException) -> Failure:
        """This rank's exception as a failure."""
        name, code = type(error).__name__, exit_code_of(error)
        phase = self._mark[0]
        return Failure(self._start, "error", name, str(error), code, self._rank, self._host, phase, self._pid)

    def _lost(self, rank: int, host: str, message: str, phase: str = "", pid: int | None = None) -> Failure:
        code = int(RankError.exit_code)
        return Failure(self._start, "lost", RankError.__name__, message, code, rank, host, phase, pid)

    def _lost_store(self, message: str) -> Failure:
        """Rank 0, or the launcher beside it, holds the store. Its last heartbeat tells where it was."""
        if 0 not in self._heard:
            return self._lost(0, os.environ.get("MASTER_ADDR", "?"), message)
        beat = self._heard[0][2]
        return self._lost(0, beat.host, f"{message} (it was in: {beat.phase})", beat.phase, beat.pid)

    def _watch(self) -> None:
        """Send a heartbeat and look for failures every `BEAT_S`."""
        while not self._done.wait(BEAT_S):
            try:
                failure = self._round()
            except Exception as error:  # noqa: BLE001  # the store is in rank 0's process or in the launcher
                kind = type(error).__name__
                failure = self._lost_store(f"its store does not answer ({kind}): its process or node is lost")
                self._store = None
            self._last_round = time.monotonic()
            if self._done.is_set():
                return
            if failure is not None:
                self._exit(failure)
            faulthandler.dump_traceback_later(60 + max(self._limits.values()), exit=True)  # a thread that keeps the GIL

    def _watch_store(self) -> None:
        """Detect a store that hangs because rank 0 is stopped. Uses this process's own clock."""
        before = time.monotonic()
        while not self._done.wait(BEAT_S):
            now = time.monotonic()
            if now - before > 3 * BEAT_S:  # this process was suspended, not the store
                self._last_round = now
            before = now
            if now - self._last_round > self._silence_s + 2 * BEAT_S:
                self._store = None
                message = f"its store has not answered for {self._silence_s:.0f} s: stopped or disconnected"
                self._exit(self._lost_store(message))

    def _round(self) -> Failure | None:
        """Send this rank's heartbeat. Returns the job's failure if there is one."""
        beat = self._heartbeat()
        if self._store is None:
            return self._hang([beat]) if beat.stuck else None
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))
        if self._store.check(["cause"]):
            return Failure(**json.loads(self._store.get("cause")))
        watched = range(1, self._world) if self._rank == 0 else (0,)
        return self._judge(list(watched), beat)

    def _heartbeat(self) -> _Heartbeat:
        now = time.monotonic()
        phase, steady, since = self._mark
        line, waiting = _position(self._main)
        stuck = now - since > self._limits[steady]
        return _Heartbeat(now, self._host, namespace(), self._pid, phase, steady, now - since, stuck, line, waiting)

    def _judge(self, watched: list[int], mine: _Heartbeat) -> Failure | None:
        """Rank 0 checks all ranks, the others check rank 0. A lost rank counts before a hanging one."""
        self._receive(watched)
        now = time.monotonic()
        for rank, (_, heard, beat) in self._heard.items():
            patience = self._silence_s * (1 if beat.steady else _SLOW)
            patience = self._silence_s / 2 if self._lost_connection else patience
            gone = _gone_from_this_host(beat)
            if now - heard > patience or (gone and now - heard > 2 * BEAT_S):
                state = gone or f"silent for {now - heard:.0f} s: killed, stopped, or its node or network is lost"
                message = f"{state} (it was in: {beat.phase})"
                return self._declare(self._lost(rank, beat.host, message, beat.phase, beat.pid))
        beats = [mine, *(beat for _, _, beat in self._heard.values())] if self._rank == 0 else []
        return self._declare(self._hang(beats)) if any(beat.stuck for beat in beats) else None

    def _receive(self, watched: list[int]) -> None:
        """Read the heartbeats of the `watched` ranks and note when each one changed."""
        assert self._store is not None
        present = [rank for rank in watched if rank in self._heard or self._store.check([f"beat/{rank}"])]
        now = time.monotonic()
        texts = self._store.multi_get([f"beat/{rank}" for rank in present]) if present else []
        for rank, raw in zip(present, texts, strict=True):
            text = raw.decode()
            if rank not in self._heard or self._heard[rank][0] != text:
                self._heard[rank] = (text, now, _Heartbeat(**json.loads(text)))

    def _hang(self, beats: list[_Heartbeat]) -> Failure:
        """The failure of ranks that make no progress. It names one that waits in no collective, else the outlier."""
        ranks = [0, *self._heard] if self._world > 1 else [0]
        free = [number for number, beat in enumerate(beats) if not beat.waiting]
        rarest = min(range(len(beats)), key=lambda n: sum(beat.line == beats[n].line for beat in beats))
        chosen = free[0] if free else rarest
        beat = beats[chosen]
        others = sorted({other.line for other in beats if other is not beat})
        text = f"no progress for {beat.seconds_in_phase:.0f} s in: {beat.phase}, at {beat.line}"
        text += f"; the others at {', '.join(others[:3])}" if others else ""
        text += f". Stacks of all threads: {RunFolder(self._run).stacks}"
        name, code = HangError.__name__, int(HangError.exit_code)
        return Failure(self._start, "hang", name, text, code, ranks[chosen], beat.host, beat.phase, beat.pid)

    def _declare(self, failure: Failure) -> Failure:
        """Make a failure the job's if it is the first. Returns the first."""
        if self._store is None:
            return failure
        try:
            agreed = self._store.compare_set("cause", "", json.dumps(asdict(failure)))
            return Failure(**json.loads(agreed)) if agreed else failure
        except Exception:  # noqa: BLE001  # without the store this rank knows no other failure
            return failure

    def _exit(self, failure: Failure) -> None:
        """Report the failure if it is this rank's task, and end this process, wherever its other threads are.

        The process ends whatever fails before, because nothing would end it later.
        """
        if not self._exiting.acquire(blocking=False):
            threading.Event().wait()  # another thread of this process is already exiting
        try:
            self._done.set()
            if failure.kind == "hang":
                _guarded(self._dump_stacks)
            _guarded(lambda: self._report(failure))
            _guarded(lambda: self._before_exit(str(failure), failure.exit_code))
            _guarded(lambda: self._leave(failure))
        finally:
            os._exit(failure.exit_code)

    def _report(self, failure: Failure) -> None:
        """Print and write the failure if it is this rank's task. All ranks report that rank 0 is lost."""
        rank_0_is_lost = failure.kind == "lost" and failure.rank == 0
        if rank_0_is_lost or self._rank == (0 if failure.kind == "lost" else failure.rank):
            _guarded(lambda: _print(str(failure)))
            if rank_0_is_lost:  # any other rank may be lost with it, so all report, and the first report stays
                time.sleep(min(_MAX_DELAY_S, 0.1 * max(0, self._rank - 1)))
            self._write(failure)
        elif self._rank != failure.rank:
            _print(f"[rank {self._rank}] exiting: rank {failure.rank} failed")

    def _leave(self, failure: Failure) -> None:
        """Kill this rank's workers and, after waiting for the other ranks, those of this host that cannot exit."""
        for child in multiprocessing.active_children():
            child.kill()
        left = self._wait_for_the_others()
        for rank in self._heard.keys() - left if self._rank == 0 else {failure.rank} if failure.kind == "lost" else ():
            self._kill_if_here(rank)

    def _write(self, failure: Failure) -> None:
        """Write failure.json, except after Ctrl-C. If that fails, say what it means for the user."""
        if failure.exit_code == INTERRUPTED:
            return
        try:
            write_failure(self._run, failure, rank=self._rank)
        except Exception as error:  # noqa: BLE001  # this rank is exiting with a more important error
            file, kind = RunFolder(self._run).failure, type(error).__name__
            text = f"cannot write {file}: the cause is in the log of this rank only ({kind}: {error})"
            _guarded(lambda: _print(f"[rank {self._rank}] {text}"))

    def _wait_for_the_others(self) -> set[int]:
        """Wait for the others on rank 0, which may hold the store they read the cause from. Returns who has left."""
        left: set[int] = set()
        if self._store is None:
            return left
        try:
            self._store.set(f"left/{self._rank}", "1")
            deadline = time.monotonic() + 3 * BEAT_S
            while self._rank == 0 and len(left) < self._world - 1 and time.monotonic() < deadline:
                time.sleep(0.05)
                left = {rank for rank in range(1, self._world) if self._store.check([f"left/{rank}"])}
        except Exception as error:  # noqa: BLE001
            _print(f"[rank {self._rank}] exiting without the store: {type(error).__name__}")
        return left

    def _kill_if_here(self, rank: int) -> None:
        """Kill a rank of this host: a stopped process cannot exit by itself."""
        if rank not in self._heard:
            return
        beat = self._heard[rank][2]
        if beat.namespace == namespace() and state_of(beat.pid) not in (None, "Z"):
            try:
                os.kill(beat.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _dump_stacks(self) -> None:
        file = RunFolder(self._run).stack(self._rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)


def _connect() -> dist.Store:
    """A separate connection to the process group's store, with time-outs of seconds."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_STORE_TIMEOUT_S)
    )
    return dist.PrefixStore(f"minigptv2/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in _LOST)
    )


def _position(thread: int | None) -> tuple[str, bool]:
    """The line of our code where the training thread is, and whether it waits for other ranks there."""
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    line, waiting = "?", False
    while frame is not None:
        file = frame.f_code.co_filename
        waiting = waiting or any(part in file for part in _WAITING)
        if line == "?" and f"{os.sep}torch{os.sep}" not in file and f"{os.sep}deepspeed{os.sep}" not in file:
            line = f"{os.sep.join(file.split(os.sep)[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return line, waiting


def _gone_from_this_host(beat: _Heartbeat) -> str | None:
    """How a rank of this host ended, or None while it runs or is on another host."""
    if beat.namespace != namespace() or not Path("/proc/self/stat").exists():
        return None
    return "its process is gone: killed" if state_of(beat.pid) in (None, "Z", "X") else None


def _guarded(work: Callable[[], None]) -> None:
    """Call `work`. Its error is printed and otherwise ignored, so that an exiting process does exit."""
    try:
        work()
    except Exception as error:  # noqa: BLE001
        with suppress(Exception):  # stderr may be on the same full disk
            print(f"while exiting: {type(error).__name__}: {redact(str(error))}", file=sys.__stderr__, flush=True)


def _print(text: str) -> None:
    print(text.rstrip(), flush=True)
