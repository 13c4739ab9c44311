"""Everyone knows who failed first, and leaves: heartbeats, the first cause, hangs with every thread's stack.

A thread of each rank beats in the process group's store and looks there for a failure. A rank that throws writes down
its error; one that is killed or stopped falls silent; one that makes no progress is stuck. The first cause is printed
once, by the rank it came from where that still can, and all ranks leave with its exit code, from whatever collective
they wait in. Its own connection to the store keeps it apart from the training thread's collectives.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist

from minigptv2.cluster import distributed
from minigptv2.errors import HangError, MiniGPTv2Error, RankError, RequeueExit, exit_code_of

BEAT_S = 1.0
"""Seconds between heartbeats."""
_SLOW = 6
"""While loading, saving and evaluating, single calls may keep a process busy: silence is borne so many times longer."""
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "Gloo", "gloo", "Socket Timeout")
"""What an error says on a rank that only lost another one."""
_WAITING = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}deepspeed{os.sep}comm{os.sep}")


@dataclass(frozen=True)
class _Cause:
    """The first failure of a job, as all ranks read it."""

    rank: int
    where: str
    text: str
    exit_code: int
    silent: bool = False
    hang: bool = False

    def __str__(self) -> str:
        return f"[rank {self.rank} ({self.where})] {self.text}"


class Watchdog:
    """`with Watchdog(...) as watch:` around all that ranks do together; `watch.at(...)` marks progress.

    `hang_s` bounds the time between two marks while training, `slow_s` (loading, saving, evaluating, first steps)
    elsewhere. `silence_s`: heartbeats missed for so long mean that a rank is gone. `before_leaving` is called with the
    cause's text and exit code on a rank that leaves because of one.
    """

    def __init__(
        self,
        run: Path,
        *,
        hang_s: float,
        slow_s: float,
        silence_s: float,
        before_leaving: Callable[[str, int], None] = lambda text, code: None,
    ) -> None:
        self._run = run
        self._limits = {True: hang_s, False: slow_s}
        self._silence_s = silence_s
        self._before_leaving = before_leaving
        self._rank, self._world = distributed.rank(), distributed.world_size()
        self._where = f"{socket.gethostname()}, pid {os.getpid()}"
        self._mark: tuple[str, bool, float] = ("starting", False, time.monotonic())
        self._main = threading.main_thread().ident
        self._done = threading.Event()
        self._leaving = threading.Lock()
        self._lost_connection = False
        self._heard: dict[int, tuple[str, float, dict[str, Any]]] = {}
        self._last_round = time.monotonic()
        self._store: dist.Store | None = None

    def at(self, phase: str, *, steady: bool = False) -> None:
        """The training thread is here now. `steady`: an ordinary step, which must be over within `hang_s`."""
        self._mark = (phase, steady, time.monotonic())

    def __enter__(self) -> Watchdog:
        if self._world > 1:
            self._store = _connect()
            self._round()  # the first heartbeat
            distributed.barrier()
            self._round()  # now every rank has been heard of
        for name, work in (("watchdog", self._watch), ("watchdog of the watchdog", self._watch_the_watch)):
            threading.Thread(target=work, name=name, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RequeueExit):
            distributed.barrier()  # no rank stops listening while another may still fail
        elif self._world > 1:
            self._failed(error)
        self._done.set()
        faulthandler.cancel_dump_traceback_later()

    def _failed(self, error: BaseException) -> None:
        """This rank's training thread threw: make it known, unless it only lost another rank; then leave."""
        if _is_lost_connection(error):
            self._lost_connection = True  # whoever left is about to be found out
            self.at(f"looking for the rank that left it in: {self._mark[0]}")
            time.sleep(self._silence_s + 4 * BEAT_S)
        elif self._rank and isinstance(error, MiniGPTv2Error):
            time.sleep(BEAT_S / 2)  # most of ours are raised on all ranks alike: rank 0's to say
        text = f"{type(error).__name__}: {error}"
        code = exit_code_of(error)
        cause = self._declare(_Cause(self._rank, self._where, text, code))
        if cause.rank == self._rank and not isinstance(error, MiniGPTv2Error):
            _print("".join(traceback.format_exception(error)))
        self._leave(cause)

    def _watch(self) -> None:
        """Beat, listen, judge, once a `BEAT_S`."""
        while not self._done.wait(BEAT_S):
            try:
                cause = self._round()
            except Exception as error:  # noqa: BLE001  # the store lives in rank 0's process or in the launcher
                text = f"RankError: its store does not answer ({type(error).__name__}): it or its node is gone"
                cause = _Cause(0, os.environ.get("MASTER_ADDR", "?"), text, RankError.exit_code, silent=True)
                self._store = None
            self._last_round = time.monotonic()
            if self._done.is_set():
                return
            if cause is not None:
                self._leave(cause)
            faulthandler.dump_traceback_later(60 + max(self._limits.values()), exit=True)  # a thread that keeps the GIL

    def _watch_the_watch(self) -> None:
        """The store itself can hang: a stopped rank 0. A clock of this process's own notices."""
        before = time.monotonic()
        while not self._done.wait(BEAT_S):
            now = time.monotonic()
            if now - before > 3 * BEAT_S:  # this process itself was held up, not the store
                self._last_round = now
            before = now
            if now - self._last_round > self._silence_s + 2 * BEAT_S:
                text = f"RankError: its store has not answered for {self._silence_s:.0f} s: stopped or cut off"
                self._store = None
                self._leave(_Cause(0, os.environ.get("MASTER_ADDR", "?"), text, RankError.exit_code, silent=True))

    def _round(self) -> _Cause | None:
        now = time.monotonic()
        phase, steady, since = self._mark
        stuck = now - since > self._limits[steady]
        beat = {
            "n": now,
            "at": self._where,
            "pid": os.getpid(),
            "host": _host(),
            "phase": phase,
            "steady": steady,
            "for_s": now - since,
            "stuck": stuck,
            **_position(self._main),
        }
        if self._store is None:
            return self._stuck_cause([beat]) if stuck else None
        self._store.set(f"beat/{self._rank}", json.dumps(beat))
        if self._store.check(["cause"]):
            return _Cause(**json.loads(self._store.get("cause")))
        watched = range(1, self._world) if self._rank == 0 else (0,)
        return self._judge(list(watched), beat)

    def _judge(self, watched: list[int], mine: dict[str, Any]) -> _Cause | None:
        """Rank 0 judges all ranks, the others rank 0: silence first, then want of progress."""
        assert self._store is not None
        present = [rank for rank in watched if rank in self._heard or self._store.check([f"beat/{rank}"])]
        now = time.monotonic()
        for rank, raw in zip(
            present, self._store.multi_get([f"beat/{r}" for r in present]) if present else [], strict=True
        ):
            text = raw.decode()
            if rank not in self._heard or self._heard[rank][0] != text:
                self._heard[rank] = (text, now, json.loads(text))
        for rank, (_, heard, beat) in self._heard.items():
            patience = self._silence_s * (1 if beat["steady"] else _SLOW)
            patience = self._silence_s / 2 if self._lost_connection else patience
            gone = _gone_from_this_host(beat)
            if now - heard > patience or (gone and now - heard > 2 * BEAT_S):
                state = gone or f"silent for {now - heard:.0f} s: killed, stopped, or its node or network is gone"
                text = f"RankError: {state} (it was in: {beat['phase']})"
                return self._declare(_Cause(rank, beat["at"], text, RankError.exit_code, silent=True))
        beats = [mine, *(beat for _, _, beat in self._heard.values())] if self._rank == 0 else []
        return self._declare(self._stuck_cause(beats)) if any(beat["stuck"] for beat in beats) else None

    def _stuck_cause(self, beats: list[dict[str, Any]]) -> _Cause:
        """Whom to name of ranks that make no progress: one that does not wait in a collective, else the odd one out."""
        ranks = [0, *self._heard] if self._world > 1 else [0]
        free = [number for number, beat in enumerate(beats) if not beat["waiting"]]
        rarest = min(range(len(beats)), key=lambda n: sum(beat["line"] == beats[n]["line"] for beat in beats))
        chosen = free[0] if free else rarest
        beat = beats[chosen]
        others = sorted({f"{other['line']}" for other in beats if other is not beat})
        text = f"HangError: no progress for {beat['for_s']:.0f} s in: {beat['phase']}, at {beat['line']}"
        text += f"; the others at {', '.join(others[:3])}" if others else ""
        return _Cause(
            ranks[chosen],
            beat["at"],
            f"{text}. All threads' stacks: {self._run / 'stacks'}",
            HangError.exit_code,
            hang=True,
        )

    def _declare(self, cause: _Cause) -> _Cause:
        """Make a cause the job's, if it is the first; returns the first."""
        if self._store is None:
            return cause
        try:
            agreed = self._store.compare_set("cause", "", json.dumps(asdict(cause)))
            return _Cause(**json.loads(agreed)) if agreed else cause
        except Exception:  # noqa: BLE001  # no store, no better knowledge
            return cause

    def _leave(self, cause: _Cause) -> None:
        """Say the cause if it is this rank's to say, and end this process, wherever its other threads are."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # another thread of this process is already leaving
        self._done.set()
        if cause.hang:
            self._dump_stacks()
        speaker = 0 if cause.silent and cause.rank else 1 if cause.silent else cause.rank
        if self._rank == speaker:
            _print(str(cause))
        elif self._rank != cause.rank:
            _print(f"[rank {self._rank}] leaves: rank {cause.rank} failed")
        self._before_leaving(str(cause), cause.exit_code)
        for child in multiprocessing.active_children():
            child.kill()
        left = self._wait_for_the_others()
        for rank in self._heard.keys() - left if self._rank == 0 else {cause.rank} if cause.silent else ():
            self._kill_if_here(rank)
        os._exit(cause.exit_code)

    def _wait_for_the_others(self) -> set[int]:
        """Rank 0 may hold the store in which the others read the cause: it goes last. Returns the ranks that left."""
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
            _print(f"[rank {self._rank}] leaves without the store: {type(error).__name__}")
        return left

    def _kill_if_here(self, rank: int) -> None:
        """A stopped process cannot leave by itself; one of the same host can end it."""
        beat = self._heard.get(rank, ("", 0.0, {}))[2]
        if beat.get("host") == _host() and _state(beat["pid"]) not in (None, "Z"):
            try:
                os.kill(beat["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return

    def _dump_stacks(self) -> None:
        folder = self._run / "stacks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"rank{self._rank}.txt", "w") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)


def _connect() -> dist.Store:
    """A connection of our own to the process group's store, with time-outs of seconds."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    return dist.PrefixStore(f"minigptv2/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in _LOST)
    )


def _position(thread: int | None) -> dict[str, Any]:
    """Where the training thread is: `line`, and whether it waits for other ranks there."""
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    line, waiting = "?", False
    while frame is not None:
        file = frame.f_code.co_filename
        waiting = waiting or any(part in file for part in _WAITING)
        if line == "?" and f"{os.sep}torch{os.sep}" not in file and f"{os.sep}deepspeed{os.sep}" not in file:
            line = f"{os.sep.join(file.split(os.sep)[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return {"line": line, "waiting": waiting}


def _host() -> str:
    """Equal for processes that see each other's ids: the host's name, and its process-id namespace where it has one."""
    namespace = Path("/proc/self/ns/pid")
    return socket.gethostname() + (f" {os.readlink(namespace)}" if namespace.is_symlink() else "")


def _state(pid: int) -> str | None:
    """The kernel's letter for what a process of this host does (R, S, T stopped, Z gone but not collected), or None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def _gone_from_this_host(beat: dict[str, Any]) -> str | None:
    """What became of a rank of this host, or None while it runs (or lives elsewhere)."""
    if beat["host"] != _host() or not Path("/proc/self/stat").exists():
        return None
    return "its process is gone: killed" if _state(beat["pid"]) in (None, "Z", "X") else None


def _print(text: str) -> None:
    print(text.rstrip(), flush=True)
