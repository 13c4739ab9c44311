"""Measures the memory of this process on Linux."""

from __future__ import annotations

from pathlib import Path


def restart_peak() -> float:
    """Memory in use now, in MB; the peak is counted anew from here (proc(5), `clear_refs`)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mb("VmRSS")


def peak_mb() -> float:
    """The most memory in use since `restart_peak`, in MB."""
    return _memory_mb("VmHWM")


def _memory_mb(entry: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {entry} in /proc/self/status: this needs Linux")
