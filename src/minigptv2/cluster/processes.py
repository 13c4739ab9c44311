"""Names this host and looks up its processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host_name() -> str:
    """The name of this host, in a Slurm job the name that Slurm uses for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def short_name(host: str) -> str:
    """A host name without its domain. An IP address is returned unchanged."""
    return host if host.replace(".", "").isdigit() else host.split(".")[0]


def namespace() -> str:
    """Host name and process-id namespace. Equal for processes that see each other's ids."""
    link = Path("/proc/self/ns/pid")
    return socket.gethostname() + (f" {os.readlink(link)}" if link.is_symlink() else "")


def machine() -> str:
    """Identifies the running kernel and the process-id namespace: equal for processes that see each other's ids.

    Host names are not unique: containers of two nodes may have the same one.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    link = Path("/proc/self/ns/pid")
    if not boot.is_file() or not link.is_symlink():
        return f"{socket.gethostname()} {os.name}"
    return f"{boot.read_text().strip()} {os.readlink(link)}"


def is_running(pid: int) -> bool:
    """Whether a process of this host exists and has not ended."""
    if Path("/proc/self/stat").exists():
        return state_of(pid) not in (None, "Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def started_at(pid: int) -> str | None:
    """When a process of this host started, in ticks since the boot. None if there is none or it cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def state_of(pid: int) -> str | None:
    """The kernel's state of a process of this host (R, S, T stopped, Z zombie), None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
