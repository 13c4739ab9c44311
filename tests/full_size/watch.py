"""Samples the memory of all processes below this one, the memory of the machine, and the disk space of a folder.

Linux only. Memory is the proportional set size (PSS), which counts shared pages once. Pages of mapped files are left
out, because the kernel frees them when memory is short.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass
class Peak:
    """The highest values of a phase in bytes: held by our processes, used on the machine, on the disk."""

    held: int = 0
    machine: int = 0
    disk: int = 0

    def include(self, other: Peak) -> None:
        """Raise each value to that of `other`, where it is higher."""
        self.held = max(self.held, other.held)
        self.machine = max(self.machine, other.machine)
        self.disk = max(self.disk, other.disk)


class MemoryWatch:
    """Samples in a thread between `__enter__` and `__exit__`; `peak` is the result. `limit` bytes may be held."""

    def __init__(self, folder: Path, limit: int, interval_s: float) -> None:
        self.peak = Peak()
        self._folder, self._limit, self._interval_s = folder, limit, interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory watch")

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self.peak.include(measure(self._folder))

    @property
    def exceeded(self) -> bool:
        """Whether our processes held more than the limit."""
        return self.peak.held > self._limit

    def _sample(self) -> None:
        while not self._end.wait(self._interval_s):
            self.peak.include(measure(self._folder))


def measure(folder: Path) -> Peak:
    """One sample."""
    held = sum(map(_held, [os.getpid(), *descendants(os.getpid())]))
    return Peak(held, _machine_used(), disk_used(folder))


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (parent := _parent(folder)) is not None:
            parents.setdefault(parent, []).append(int(folder.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended


def _held(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def _machine_used() -> int:
    lines = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return (int(lines["MemTotal"].split()[0]) - int(lines["MemAvailable"].split()[0])) << 10


def disk_used(folder: Path) -> int:
    """The bytes that the files below `folder` take on the disk."""
    used = 0
    for file in folder.rglob("*"):
        try:
            used += file.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # it was removed or renamed
    return used
