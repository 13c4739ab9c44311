"""Reading other people's files without running them, and saying what became of each of their keys."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from minigptv2.errors import CheckpointError
from minigptv2.files import write_atomically

REPORT_FILE = "conversion.json"


def read_torch(file: Path) -> Any:
    """What `torch.save` wrote, tensors and plain values only, tensors mapped from disk where the format allows it.

    Raises `CheckpointError` for a file that is missing, cut off, or holds objects that would run code when read.
    """
    if not file.is_file():
        raise CheckpointError(f"no file {file}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise CheckpointError(
                f"{file}: refused: it holds a Python object ({found[1]}) that would run code when read; "
                "only tensors and plain values are"
            ) from error
        raise CheckpointError(f"{file}: not a whole torch file: {str(error).splitlines()[0]}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: not a whole torch file: {str(error).splitlines()[0]}") from error


@dataclass
class KeyReport:
    """Per source file: keys taken (with their new names) and keys dropped (with the reason)."""

    taken: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, source: str, key: str, name: str) -> None:
        """`key` of `source` became `name`."""
        self.taken.setdefault(source, {})[key] = name

    def drop(self, source: str, key: str, why: str) -> None:
        """`key` of `source` was left out."""
        self.dropped.setdefault(source, {})[key] = why

    def lines(self) -> list[str]:
        """For the terminal: counts per source, and dropped keys counted by reason."""
        lines = []
        for source in dict.fromkeys([*self.taken, *self.dropped]):
            dropped = self.dropped.get(source, {})
            lines.append(f"{source}: {len(self.taken.get(source, {}))} keys taken, {len(dropped)} dropped")
            for why, count in Counter(dropped.values()).items():
                first = next(key for key, reason in dropped.items() if reason == why)
                lines.append(f"  dropped {count}: {why} (first: {first})")
        return lines

    def write(self, folder: Path) -> None:
        """Every key, as JSON, into a folder."""
        document = {"taken": self.taken, "dropped": self.dropped}
        write_atomically(folder / REPORT_FILE, json.dumps(document, indent=1).encode())


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise `CheckpointError` if the result would take the place of something that is there."""
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; give another --output, or --overwrite")
