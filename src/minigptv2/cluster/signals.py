"""Leaving in good order: SIGTERM, SIGUSR1 and time limits become one decision of all ranks at a step's edge.

A handler only notes the signal; nothing is saved from inside it. `StopRequests.agreed` is a collective: if any rank was
asked to stop, all ranks stop after the same step. Imports no torch, so that a launcher's script can listen before
anything heavy is loaded.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks for a save and a requeue: `scancel` and launchers send the first, `sbatch --signal=USR1@300` the second."""
SLURM_END = "SLURM_JOB_END_TIME"
"""Unix time at which Slurm will end the job, in its environment."""
TIME_LIMIT = "time limit"

_received: list[str] = []
_listener: int | None = None


def listen() -> None:
    """Note SIGTERM and SIGUSR1 from now on instead of dying of them. Call it early, in the main thread."""
    global _listener
    if _listener == os.getpid():
        return
    _listener = os.getpid()
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _note)


def stop_listening() -> None:
    """Give SIGTERM and SIGUSR1 their usual meaning again, and forget what came."""
    global _listener
    if _listener == os.getpid():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    _listener = None
    _received.clear()


def _note(number: int, frame: FrameType | None) -> None:
    """The handler. Processes forked from a rank inherit it; the signal is meant for the rank, which tells them."""
    if os.getpid() == _listener:
        _received.append(signal.Signals(number).name)


class StopRequests:
    """Whether this run has been asked to stop: by a signal to any rank, or by a time limit.

    `time_limit_minutes` counts from the making of this object (0: none); Slurm's own end of the job counts too. A limit
    is met when what is left would not hold two more steps and two saves of the slowest kind seen.
    """

    def __init__(self, time_limit_minutes: float = 0.0) -> None:
        listen()
        now, wall = time.monotonic(), time.time()
        ends = [now + 60 * time_limit_minutes] if time_limit_minutes else []
        if os.environ.get(SLURM_END, "").isdigit():
            ends.append(now + float(os.environ[SLURM_END]) - wall)
        self._end = min(ends) if ends else None
        self._slowest_step = self._slowest_save = 0.0
        self._edge: float | None = None  # loading is no step

    def saved(self, seconds: float) -> None:
        """A save held training up for so long."""
        self._slowest_save = max(self._slowest_save, seconds)
        self._edge = time.monotonic()

    def agreed(self) -> str | None:
        """Why to stop now, the same on all ranks, or None to go on. A collective: call it at each step's edge."""
        from minigptv2.cluster import distributed

        now = time.monotonic()
        if self._edge is not None:
            self._slowest_step = max(self._slowest_step, now - self._edge)
        self._edge = now
        reasons = [*(number.name for number in SIGNALS), TIME_LIMIT]
        mine = [*(name in _received for name in reasons[:-1]), self._limit_is_near(now)]
        voted = distributed.any_over_ranks(mine)
        return next((reason for reason, asked in zip(reasons, voted, strict=True) if asked), None)

    def _limit_is_near(self, now: float) -> bool:
        return self._end is not None and now + 2 * (self._slowest_step + self._slowest_save) >= self._end
