"""Checks the tensors of foreign checkpoints, and reports what was done with each key."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigptv2.errors import CheckpointError
from minigptv2.model.backbones import Sizes
from minigptv2.model.build import build_model
from minigptv2.model.config import ModelConfig
from minigptv2.model.weights import Tensors, check_shapes, named_canonical, part_of
from minigptv2.redacted_files import write_json

REPORT_FILE = "conversion.json"


def tensors_only(state: Any, file: Path) -> dict[str, Tensor]:
    """`state` as a state dict. Raises `CheckpointError` naming the first entry that is not a named tensor.

    A tensor that shares its memory with an earlier one, which safetensors cannot write, is copied.
    """
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file}: expected named tensors, got {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {key!r} must be a tensor, got {type(value).__name__}")
        memory = value.untyped_storage().data_ptr()
        tensors[key] = value.clone() if memory in seen else value
        seen.add(memory)
    return tensors


@dataclass
class KeyReport:
    """The keys of each source file: those taken, with their new names, and those dropped, with the reason."""

    taken: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, source: str, key: str, name: str) -> None:
        """Record that `key` of `source` was taken as `name`."""
        self.taken.setdefault(source, {})[key] = name

    def drop(self, source: str, key: str, why: str) -> None:
        """Record that `key` of `source` was dropped, and why."""
        self.dropped.setdefault(source, {})[key] = why

    def lines(self) -> list[str]:
        """A summary for the terminal: counts per source, and dropped keys by reason."""
        lines = []
        for source in dict.fromkeys([*self.taken, *self.dropped]):
            dropped = self.dropped.get(source, {})
            lines.append(f"{source}: {len(self.taken.get(source, {}))} keys taken, {len(dropped)} dropped")
            for why, count in Counter(dropped.values()).items():
                first = next(key for key, reason in dropped.items() if reason == why)
                lines.append(f"  dropped {count}: {why} (first: {first})")
        return lines

    def write(self, folder: Path) -> None:
        """Write every key as JSON to `REPORT_FILE` in a folder."""
        self.write_file(folder / REPORT_FILE)

    def write_file(self, file: Path) -> None:
        """Write every key as JSON."""
        document = {"taken": self.taken, "dropped": self.dropped}
        write_json(file, document)


def report_of(output: Path) -> Path:
    """The path of the report of a conversion: next to a `.pth` file, or inside an output folder."""
    return output.with_name(f"{output.name}.{REPORT_FILE}") if output.suffix == ".pth" else output / REPORT_FILE


def refuse_existing(output: Path, overwrite: bool, *inputs: Path | str | None) -> None:
    """Raise `CheckpointError` if the result would replace something that exists.

    With `overwrite`, an earlier result of a conversion is replaced, but never a folder that contains one of `inputs`.
    """
    place = output.resolve()
    for given in inputs:
        if given is not None and place in (path := Path(given).resolve(), *path.parents):
            raise CheckpointError(f"{output} contains the input {given}; choose another --output")
    if not output.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{output} exists; choose another --output or add --overwrite")
    if not report_of(output).is_file():
        raise CheckpointError(f"{output} is not a result of this command and is not overwritten")


class Source(NamedTuple):
    """One of the inputs: its path, its tensors by the names of this package, and the parts that it must fill."""

    path: Path
    tensors: Tensors
    parts: tuple[str, ...]


def check_complete(model: ModelConfig, sizes: Sizes, vocab_size: int, sources: list[Source]) -> None:
    """Raise `CheckpointError` unless the sources together match the parameters of a model of these sizes exactly."""
    with torch.device("meta"):
        built = build_model(model, vocab_size, sizes=sizes)
    expected = {name: tuple(parameter.shape) for name, parameter in named_canonical(built).items()}
    found: set[str] = set()
    for source in sources:
        check_shapes(source.tensors, expected, str(source.path))
        found |= set(source.tensors)
    owner = {part: source.path for source in sources for part in source.parts}
    for name, shape in expected.items():
        if name not in found and part_of(name) in owner:
            raise CheckpointError(f"{owner[part_of(name)]} has no tensor for {name} of shape {shape}")
