"""Refuses to load a model that does not fit into memory, which the system would end without a message."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from minigptv2.errors import ConfigError
from minigptv2.machine_memory import GIB, available_memory

BESIDE_WEIGHTS = 0.05
"""Memory beside the weights, as a share of them: the tensor that is being read, activations, keys and values."""
_SMALLER = {"float32": "bfloat16"}
"""The dtype to suggest instead of one that does not fit."""


def check_memory(model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raise `ConfigError` if `model`, which may be on the meta device, does not fit in `dtype`.

    On a CPU all ranks of this machine load the model. Nothing is checked where the available memory is not known.
    """
    available = _available(device)
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    numbers = sum(parameter.numel() for parameter in model.parameters())
    needed = _bytes(numbers, dtype) * copies
    if available is None or needed <= available:
        return
    name = str(dtype).removeprefix("torch.")
    ranks = f" on {copies} ranks" if copies > 1 else ""
    fixes = ["close other programs", "use a machine with more memory"]
    if device.type == "cpu":
        fixes.append("use a GPU")
    if copies > 1:
        fixes.insert(0, "start fewer ranks")
    if smaller := _SMALLER.get(name):
        size = _bytes(numbers, getattr(torch, smaller)) * copies / GIB
        fixes.insert(0, f"load it in {smaller}, which needs {size:.1f} GiB (--dtype {smaller})")
    raise ConfigError(
        f"{folder}: the model does not fit into the memory of {device}: {numbers / 1e9:.2f} billion numbers in "
        f"{name}{ranks} need {needed / GIB:.1f} GiB, but {available / GIB:.1f} GiB are available. To fix this, "
        f"{', or '.join(fixes)}."
    )


def _bytes(numbers: int, dtype: torch.dtype) -> int:
    return int(numbers * dtype.itemsize * (1 + BESIDE_WEIGHTS))


def _available(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() if device.type == "cpu" else None
