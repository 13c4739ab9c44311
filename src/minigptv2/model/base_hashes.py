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
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from minigptv2.errors import CheckpointError
from minigptv2.files import write_atomically
from minigptv2.foreign_files import read_json
from minigptv2.model.bases import Base
from minigptv2.model.weights import LazyTensor, TensorHash, hash_tensors
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
    entry = _Entry(base)
    known = entry.known()
    if known is not None:
        return known
    sha256 = hash_tensors(base.tensors, str(base.folder))
    entry.keep(sha256)
    return sha256


class HashedBase:
    """A base whose hash is computed while its tensors are read, each once and in order, unless the cache has it.

    `base` has the tensors to read. `known` is the hash from the cache, or None.
    """

    def __init__(self, base: Base) -> None:
        self._entry, self._hash = _Entry(base), TensorHash(str(base.folder))
        self.known = self._entry.known()
        hashed = {name: replace(one, read=partial(self._read, name, one)) for name, one in sorted(base.tensors.items())}
        self.base = base if self.known else replace(base, tensors=hashed)

    def _read(self, name: str, tensor: LazyTensor) -> Tensor:
        value = tensor.read()
        self._hash.add(name, value)
        return value

    def sha256(self) -> str:
        """Return the hash, after all tensors were read."""
        if self.known is not None:
            return self.known
        sha256 = self._hash.hexdigest()
        self._entry.keep(sha256)
        return sha256


class _Entry:
    """The place of a base's hash in the user's cache. Created before the files are read."""

    def __init__(self, base: Base) -> None:
        name = hashlib.sha256(f"{_FORMAT} {base.part} {base.folder.resolve()}".encode()).hexdigest()
        self._name = f"{name[:32]}.json"
        self._files = [asdict(file) for file in base.files]
        newest = max((file.changed_ns for file in base.files), default=0)
        self._settled = newest < (time.time() - SETTLED_S) * 1e9

    @property
    def _file(self) -> Path:
        return user_cache_folder(CACHE) / self._name

    def known(self) -> str | None:
        """Return the hash if it is that of these files. A damaged entry is not used, and replaced later."""
        if not self._files or not self._file.is_file():
            return None
        try:
            document = read_json(self._file, CheckpointError, folder=self._file.parent)
        except CheckpointError:
            return None
        if not isinstance(document, dict) or document.get("files") != self._files:
            return None
        sha256 = document.get("sha256")
        return sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None

    def keep(self, sha256: str) -> None:
        """Write the hash, unless the files are too new for it."""
        if self._files and self._settled:
            _keep_hash(self._file, {"files": self._files, "sha256": sha256})


def _keep_hash(entry: Path, document: dict[str, object]) -> None:
    try:
        write_atomically(entry, json.dumps(document).encode())
    except OSError as error:
        print(f"warning: {entry}: the hash is not kept: {error.strerror}", file=sys.stderr, flush=True)
