"""Files that are either whole or not there: hashing, atomic writes, syncing. Floor 0, knows no formats."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(file: Path) -> None:
    """Make the file's content reach the disk."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def finish_file(file: Path) -> None:
    """Sync a file that a library wrote, and give it the mode that the umask asks for: safetensors makes it private."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
    sync_file(file)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (a rename, a new file) reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_atomically(file: Path, data: bytes) -> None:
    """Write, sync and rename, so that `file` is either the old or the new content, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    sync_file(temporary)
    os.replace(temporary, file)
