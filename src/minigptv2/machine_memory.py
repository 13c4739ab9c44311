"""Tells how much memory a process can still use on this machine, or in its container or Slurm job. Linux only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GIB = 1 << 30
_MEMINFO = ("MemAvailable:",)
_UNIFIED = ("", "memory.max", "memory.current", ("active_file", "inactive_file"))
_OLD = (
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
"""Folder below the root, limit, usage and page cache in `memory.stat`, of control groups in version 2 and 1."""


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that the machine, or a control group of this process if it has less, has left.

    Clean pages of files count as left, because the kernel frees them. None where nothing is known (not Linux).
    """
    left = [*_left_on_machine(proc / "meminfo"), *_left_in_groups(proc / "self" / "cgroup", groups)]
    return min(left, default=None)


def _left_on_machine(meminfo: Path) -> Iterator[int]:
    for line in _lines(meminfo):
        if line.startswith(_MEMINFO):
            yield int(line.split()[1]) << 10


def _left_in_groups(membership: Path, root: Path) -> Iterator[int]:
    """Yield what each control group of this process and above it has left.

    In a container the stated path may not exist below `root`, which then is the group of the container itself.
    """
    for line in _lines(membership):
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        below, limit, usage, cached = _UNIFIED if number == "0" else _OLD
        place = Path(path)
        for group in (place, *place.parents):
            folder = root / below / str(group).lstrip("/")
            yield from _left_in(folder / limit, folder / usage, folder / "memory.stat", cached)


def _left_in(limit: Path, usage: Path, statistics: Path, cached: tuple[str, ...]) -> Iterator[int]:
    most, used = _lines(limit), _lines(usage)
    if not most or not used or most[0] == "max":
        return
    pages = sum(int(line.split()[1]) for line in _lines(statistics) if line.split()[0] in cached)
    yield int(most[0]) - int(used[0]) + pages


def _lines(file: Path) -> list[str]:
    """Return the lines of a file, none if it does not exist."""
    return file.read_text().splitlines() if file.is_file() else []
