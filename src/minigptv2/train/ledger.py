"""Measures the seconds of a start by phase, from the command to the first step."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from minigptv2.cluster.processes import started_at


def seconds_since_start() -> float:
    """Return how long this process has run, from the clock of its start in /proc; 0.0 where there is none."""
    ticks = started_at(os.getpid())
    return 0.0 if ticks is None else time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


@dataclass
class StartLedger:
    """The seconds of each phase of a start, in order. The first one began with the process."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=lambda: time.monotonic() - seconds_since_start())

    def end(self, phase: str) -> None:
        """Note that `phase` ended now. It began with the end of the phase before."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def line(self) -> str:
        """Return the phases as a line for the log."""
        return describe(self.seconds)


def describe(seconds: Mapping[str, float]) -> str:
    """Return seconds by phase as text, with their sum."""
    phases = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
    return f"start-up: {phases}, total {sum(seconds.values()):.1f} s"
