"""Operators that DeepSpeed compiles on first use: one process of a node builds, the others wait for it.

torch guards a build with an empty file named `lock`. A process that is killed while building leaves it behind, and
every later one waits for it for ever, silently. Here a lock of the operating system, which dies with its holder, is
taken first; so a `lock` file that is found then, and that no process of this node has open, is a dead one's.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_S = 0.2


def load(builder_name: str) -> Any:
    """DeepSpeed's operator, built if need be; None where this machine cannot have it."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    builder = get_accelerator().create_op_builder(builder_name)
    if builder is None or not __compatible_ops__.get(builder.NAME, False):
        return None
    from torch.utils.cpp_extension import _get_build_directory

    # DeepSpeed asks torch for the same folder: under TORCH_EXTENSIONS_DIR, or the home folder's cache.
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with building(folder), _our_ninja():
        return builder.load(verbose=False)


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """The only process of this node, of those that ask here, that may build in `folder`; a dead build's lock is gone.

    Over a network file system the lock holds between nodes too where the server keeps locks, as NFS does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".turn"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        lock = folder / "lock"
        while lock.exists():
            if not _is_open_somewhere(lock):
                lock.unlink(missing_ok=True)
                break
            time.sleep(_POLL_S)  # another program's build
        yield


@contextmanager
def _our_ninja() -> Iterator[None]:
    """Build with the ninja of this environment: another version found on the PATH first would build all anew, minutes
    long, as each writes its log so that the other finds every command changed."""
    import ninja

    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _is_open_somewhere(file: Path) -> bool:
    """Whether a process of this machine, of those we may look at, has the file open."""
    wanted = str(file.resolve())
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if any(os.readlink(entry) == wanted for entry in (process / "fd").iterdir()):
                    return True
            except OSError:  # it ended meanwhile, or belongs to someone else
                continue
    return False
