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


def state_of(pid: int) -> str | None:
    """The kernel's state of a process of this host (R, S, T stopped, Z zombie), None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None
