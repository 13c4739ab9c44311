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
from torch import Tensor

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
        raise CheckpointError(f"{file}: not a whole torch file: {first_line(error)}") from error
    except Exception as error:
        raise CheckpointError(f"{file}: not a whole torch file: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def tensors_only(state: Any, file: Path) -> dict[str, Tensor]:
    """A state dict as such. Raises `CheckpointError` naming the first entry that is not a named tensor."""
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file}: want named tensors, found {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {key!r} is of type {type(value).__name__}, not a tensor")
    return state


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
        self.write_file(folder / REPORT_FILE)

    def write_file(self, file: Path) -> None:
        """Every key, as JSON."""
        document = {"taken": self.taken, "dropped": self.dropped}
        write_atomically(file, json.dumps(document, indent=1).encode())


def report_of(output: Path) -> Path:
    """Where the report of a conversion lies: beside a `.pth`, in a folder."""
    return output.with_name(f"{output.name}.{REPORT_FILE}") if output.suffix == ".pth" else output / REPORT_FILE


def refuse_existing(output: Path, overwrite: bool, *inputs: Path | str | None) -> None:
    """Raise `CheckpointError` if the result would take the place of something that is there.

    With `overwrite`, only a result of this command's is replaced, and never a folder that holds one of `inputs`.
    """
    place = output.resolve()
    for given in inputs:
        if given is not None and place in (path := Path(given).resolve(), *path.parents):
            raise CheckpointError(f"{output} holds {given}, which is read: give another --output")
    if not output.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{output} exists; give another --output, or --overwrite")
    if not report_of(output).is_file():
        raise CheckpointError(f"{output} is not a result of this command, so it is not overwritten")
