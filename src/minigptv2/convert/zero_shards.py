"""Joins the shards of a DeepSpeed checkpoint (ZeRO 1 to 3) to fp32 weights, without DeepSpeed.

DeepSpeed's own `zero_to_fp32` looks for files by a pattern that contains the folder's name, and runs the code in their
pickles. Here each file is opened once and read by `torch_files`. Keys are those that DeepSpeed writes:
`deepspeed/checkpoint/constants.py`, version 0.19.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from minigptv2.convert.pickles import MAX_DIMENSIONS, whole
from minigptv2.convert.torch_files import read_torch
from minigptv2.engine.config import ZERO_VARIANTS, ZeroVariant
from minigptv2.errors import CheckpointError

_RANK_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d+)_(optim|model)_states\.pt")
_MODEL_FILE = "mp_rank_00_model_states.pt"
"""The one file of the model under ZeRO 1 and 2."""
_OPTIMIZER = "optimizer_state_dict"
_EXPERTS = ("autoep_layers", "ds_autoep_layers")


@dataclass(frozen=True)
class _Checkpoint:
    """The read files of a checkpoint. `models` has one entry, or one per rank if the parameters were sharded."""

    variant: ZeroVariant
    models: list[dict[str, Any]]
    optimizers: list[dict[str, Any]]


def consolidated(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of the checkpoint in `folder` by parameter name, with frozen weights and buffers.

    Raises `CheckpointError` for a file that cannot be read, a rank without files, and shapes that do not match the
    shards.
    """
    try:
        checkpoint = _read(folder)
        state = _buffers(checkpoint.models[0])
        if checkpoint.variant.shards_parameters:
            state |= _frozen_shards(checkpoint) | _trained_by_parameter(checkpoint)
        else:
            state |= checkpoint.models[0].get("frozen_param_fragments") or {}
            state |= _trained_by_group(checkpoint)
            # Under ZeRO 1 frozen parameters are in the state of the module only.
            state = {**(checkpoint.models[0].get("module") or {}), **state}
        for name, same in checkpoint.models[0].get("shared_params", {}).items():
            if same in state:
                state[name] = state[same]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{folder}: its shards cannot be joined: {type(error).__name__}: {error}. Save the checkpoint again with "
            "DeepSpeed's save_checkpoint, and copy the files of all ranks."
        ) from error
    _check_tensors(state, folder)
    return state


def _read(folder: Path) -> _Checkpoint:
    """Every file of the checkpoint that is needed, read once."""
    ranks: dict[str, dict[int, Path]] = {"optim": {}, "model": {}}
    for file in sorted(folder.iterdir()):
        match = _RANK_FILE.fullmatch(file.name)
        if match is None:
            continue
        rank, model_parallel, kind = int(match[1]), int(match[2]), match[3]
        if model_parallel or rank in ranks[kind]:
            raise CheckpointError(f"{file}: model parallel checkpoints are not supported, nor are two files of a rank")
        ranks[kind][rank] = file
    if not ranks["optim"]:
        raise CheckpointError(f"{folder} has no *_optim_states.pt and is not a checkpoint of ZeRO 1, 2 or 3")
    optimizers = _in_order(ranks["optim"], folder)
    first = (optimizers[0].get(_OPTIMIZER) or {}).get("zero_stage")
    variant = ZERO_VARIANTS.get(first) if isinstance(first, int) else None
    if variant is None or not variant.shards_optimizer:
        raise CheckpointError(f"{folder}: ZeRO stage {first!r} is not supported; expected 1, 2 or 3")
    by_rank = variant.shards_parameters
    models = _in_order(ranks["model"], folder) if by_rank else [_document(folder / _MODEL_FILE, folder)]
    if any(model.get(key) for model in models for key in _EXPERTS):
        raise CheckpointError(f"{folder}: checkpoints of partitioned experts (AutoEP) are not supported")
    if by_rank and len(models) != len(optimizers):
        raise CheckpointError(
            f"{folder}: its shards cannot be joined: {len(optimizers)} optimizer files, but {len(models)} model files"
        )
    return _Checkpoint(variant, models, optimizers)


def _in_order(files: dict[int, Path], folder: Path) -> list[dict[str, Any]]:
    """The files of ranks 0, 1, ... Raises `CheckpointError` if one is missing."""
    count = max(files, default=-1) + 1
    absent = next((rank for rank in range(count) if rank not in files), None)
    if absent is not None or not files:
        raise CheckpointError(f"{folder}: its shards cannot be joined: the file of rank {absent or 0} is missing")
    return [_document(files[rank], folder) for rank in range(count)]


def _document(file: Path, folder: Path) -> dict[str, Any]:
    document = read_torch(file, folder=folder)
    if not isinstance(document, dict) or not isinstance(document.get(_OPTIMIZER), (dict, NoneType)):
        raise CheckpointError(f"{file} is not a file of DeepSpeed's save_checkpoint")
    return document


def _buffers(model: dict[str, Any]) -> dict[str, Tensor]:
    names, module = model["buffer_names"], model["module"] or {}
    return {name: module[name].float() for name in names if name in module}


def _trained_by_group(checkpoint: _Checkpoint) -> dict[str, Tensor]:
    """ZeRO 1 and 2: the parameters of a group follow each other in one vector, which is cut into a piece per rank."""
    states = [optimizer[_OPTIMIZER] for optimizer in checkpoint.optimizers]
    ranks = _world_size(states, checkpoint)
    groups = [state["single_partition_of_fp32_groups"] for state in states]
    paddings = states[0].get("param_alignment_paddings")
    found: dict[str, Tensor] = {}
    for number, shapes in enumerate(checkpoint.models[0]["param_shapes"]):
        pieces, start = [group[number] for group in groups], 0
        padding = paddings[number] if paddings else [0] * len(shapes)
        for (name, shape), extra in zip(shapes.items(), padding, strict=True):
            found[name] = _taken(pieces, start, _count(shape)).view(shape)
            start += _count(shape) + extra
        available, unit = sum(piece.numel() for piece in pieces), 2 * ranks  # the unit to which DeepSpeed pads
        if -(-start // unit) != -(-available // unit):
            raise ValueError(f"parameter group {number} has {available} numbers, its shapes need {start}")
    return found


def _trained_by_parameter(checkpoint: _Checkpoint) -> dict[str, Tensor]:
    """ZeRO 3: each parameter is cut into a piece per rank. A rank has its pieces one after the other, in groups."""
    states = [optimizer[_OPTIMIZER] for optimizer in checkpoint.optimizers]
    ranks = _world_size(states, checkpoint)
    groups = [state["fp32_flat_groups"] for state in states]
    start = 0
    found: dict[str, Tensor] = {}
    for shapes in checkpoint.models[0]["param_shapes"]:
        for name, shape in shapes.items():
            length = -(-_count(shape) // ranks)
            pieces = [_taken(group, start, length) for group in groups]
            found[name] = torch.cat(pieces)[: _count(shape)].view(shape)
            start += length
    available = sum(piece.numel() for piece in groups[0])
    if start != available:
        raise ValueError(f"the shards have {available} numbers, their shapes need {start}")
    return found


def _frozen_shards(checkpoint: _Checkpoint) -> dict[str, Tensor]:
    shapes = checkpoint.models[0].get("frozen_param_shapes") or {}
    return {
        name: torch.cat([model["frozen_param_fragments"][name] for model in checkpoint.models])[: _count(shape)].view(
            shape
        )
        for name, shape in shapes.items()
    }


def _world_size(states: list[dict[str, Any]], checkpoint: _Checkpoint) -> int:
    stated = states[0]["partition_count"]
    ranks = max(stated) if isinstance(stated, list) else stated
    if ranks != len(checkpoint.optimizers):
        raise ValueError(f"the checkpoint is of {ranks} ranks, found files of {len(checkpoint.optimizers)}")
    return len(checkpoint.optimizers)


def _count(shape: Any) -> int:
    """The number of elements of a tensor of this shape."""
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape must be a tuple of at most {MAX_DIMENSIONS} numbers")
    return math.prod(whole(number) for number in shape)


def _taken(pieces: list[Tensor], start: int, count: int) -> Tensor:
    """`count` numbers from `start` of the vector whose pieces are given."""
    taken, end = [], start + count
    for piece in pieces:
        length = piece.numel()
        taken.append(piece[max(0, min(start, length)) : max(0, min(end, length))])
        start, end = start - length, end - length
    if end > 0 and sum(piece.numel() for piece in taken) != count:
        raise ValueError(f"{count} numbers are needed where the shards end")
    return torch.cat(taken)


def _check_tensors(state: dict[str, Any], folder: Path) -> None:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{folder}: {name!r} must be a tensor, got {type(value).__name__}")
    empty = [name for name, value in state.items() if value.numel() == 0]
    if empty:
        raise CheckpointError(f"{folder}: {len(empty)} empty tensors, first {empty[0]}")
