"""Hashes base weights, and keeps each hash in the user's cache until a file of the folder changes.

Hashing reads every byte: 77 s for LLaMA-2-7B and ViT-g on one core. A kept hash is used if path, size, times, device
and inode number of all files of the folder are the same. Tensors are checked for numbers that are not finite when they
are hashed, so a kept hash also means that this check passed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

from minigptv2.errors import CheckpointError
from minigptv2.files import write_atomically
from minigptv2.foreign_files import read_json
from minigptv2.model.bases import Base
from minigptv2.model.weights import hash_tensors
from minigptv2.user_cache import user_cache_folder

CACHE = "hashes"
_FORMAT = 1
"""Changes when `hash_tensors` gives another result for the same tensors."""
SETTLED_S = 2.0
"""Age of the newest file below which a hash is not kept: a file system may give a later change the same times."""


def hash_bases(bases: list[Base]) -> dict[str, str]:
    """Return the SHA-256 of the base tensors by part, from the user's cache where the files are unchanged.

    Raises `CheckpointError` naming the first tensor that is not finite.
    """
    return {base.part: _hash_base(base) for base in bases}


def _hash_base(base: Base) -> str:
    if not base.files:
        return hash_tensors(base.tensors, str(base.folder))
    name = hashlib.sha256(f"{_FORMAT} {base.part} {base.folder.resolve()}".encode()).hexdigest()
    entry = user_cache_folder(CACHE) / f"{name[:32]}.json"
    files = [asdict(file) for file in base.files]
    known = _kept_hash(entry, files)
    if known is not None:
        return known
    began = time.time()
    sha256 = hash_tensors(base.tensors, str(base.folder))
    if max(file.changed_ns for file in base.files) < (began - SETTLED_S) * 1e9:
        _keep_hash(entry, {"files": files, "sha256": sha256})
    return sha256


def _kept_hash(entry: Path, files: list[dict[str, str | int]]) -> str | None:
    """Return the hash in `entry` if it is that of these files. A damaged entry is not used, and replaced later."""
    if not entry.is_file():
        return None
    try:
        document = read_json(entry, CheckpointError, folder=entry.parent)
    except CheckpointError:
        return None
    if not isinstance(document, dict) or document.get("files") != files:
        return None
    sha256 = document.get("sha256")
    return sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None


def _keep_hash(entry: Path, document: dict[str, object]) -> None:
    try:
        write_atomically(entry, json.dumps(document).encode())
    except OSError as error:
        print(f"warning: {entry}: the hash is not kept: {error.strerror}", file=sys.stderr, flush=True)
