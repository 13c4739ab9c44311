"""Turns SIGTERM, SIGUSR1, SIGHUP and time limits into one decision of all ranks to stop at the end of a step.

The handler only records the signal and saves nothing. `StopRequests.poll_all_ranks` is a collective: if any rank was
asked to stop, all ranks stop after the same step. Imports no torch, so that a command can listen before it loads torch.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Requests to save and stop. `scancel` and launchers send the first, `sbatch --signal=USR1@300` the second, a terminal
that is closed the third, which stays ignored under `nohup`."""
SLURM_END = "SLURM_JOB_END_TIME"
"""Environment variable with the Unix time at which Slurm ends the job."""
TIME_LIMIT = "time limit"

_received: list[str] = []
_listener: int | None = None
_listened: list[signal.Signals] = []


def listen() -> None:
    """Record the signals from now on instead of ending. Call it early, in the main thread."""
    global _listener
    if _listener == os.getpid():
        return
    _listener = os.getpid()
    _received.clear()
    _listened[:] = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    for number in _listened:
        signal.signal(number, _record)


def stop_listening() -> None:
    """Restore the default action of the signals and forget the recorded ones."""
    global _listener
    if _listener == os.getpid():
        for number in _listened:
            signal.signal(number, signal.SIG_DFL)
    _listener = None
    _received.clear()


def _record(number: int, frame: FrameType | None) -> None:
    """The handler. Forked processes inherit it and ignore the signal, which is meant for the rank."""
    if os.getpid() == _listener:
        _received.append(signal.Signals(number).name)


class StopRequests:
    """Whether this run has been asked to stop: by a signal to any rank, or by a time limit.

    `time_limit_minutes` counts from the construction of this object (0: none). The end time of a Slurm job counts too.
    The limit is near when the remaining time is too short for two steps and two saves of the slowest seen.
    """

    def __init__(self, time_limit_minutes: float = 0.0) -> None:
        listen()
        now, wall = time.monotonic(), time.time()
        ends = [now + 60 * time_limit_minutes] if time_limit_minutes else []
        if os.environ.get(SLURM_END, "").isdigit():
            ends.append(now + float(os.environ[SLURM_END]) - wall)
        self._end = min(ends) if ends else None
        self._slowest_step = self._slowest_save = 0.0
        self._step_began: float | None = None  # None before the first step: loading is not a step

    def record_save(self, seconds: float) -> None:
        """Record that a save paused training for `seconds`."""
        self._slowest_save = max(self._slowest_save, seconds)
        self._step_began = time.monotonic()

    def poll_all_ranks(self) -> str | None:
        """Why to stop now, equal on all ranks, or None. A collective: call it at the end of each step."""
        from minigptv2.cluster import distributed

        now = time.monotonic()
        if self._step_began is not None:
            self._slowest_step = max(self._slowest_step, now - self._step_began)
        self._step_began = now
        reasons = [*(number.name for number in SIGNALS), TIME_LIMIT]
        mine = [*(name in _received for name in reasons[:-1]), self._limit_is_near(now)]
        voted = distributed.any_over_ranks(mine)
        return next((reason for reason, asked in zip(reasons, voted, strict=True) if asked), None)

    def _limit_is_near(self, now: float) -> bool:
        return self._end is not None and now + 2 * (self._slowest_step + self._slowest_save) >= self._end
