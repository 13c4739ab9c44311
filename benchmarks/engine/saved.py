"""Counts the bytes that autograd keeps for a backward pass: distinct storages, without parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept_bytes(model: nn.Module, run: Callable[[], object], *, given: list[Tensor] | None = None) -> int:
    """Return the bytes that `run()` keeps for its backward pass, without the parameters and the `given` tensors."""
    outside = {_storage(parameter) for parameter in model.parameters()}
    outside |= {_storage(buffer) for buffer in model.buffers()} | {_storage(tensor) for tensor in given or []}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage could have the address of a later one

    def pack(tensor: Tensor) -> Tensor:
        is_parameter = isinstance(tensor, nn.Parameter) or _storage(tensor) in outside
        if not is_parameter and tensor.numel():
            sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(sizes.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
