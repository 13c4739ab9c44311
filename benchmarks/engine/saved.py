"""Exactly what autograd keeps for a backward pass: bytes of distinct storages, parameters left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept_bytes(model: nn.Module, run: Callable[[], object], *, given: list[Tensor] | None = None) -> int:
    """Bytes that `run()` leaves alive for its backward pass, beside the parameters and the `given` tensors."""
    outside = {_storage(parameter) for parameter in model.parameters()}
    outside |= {_storage(buffer) for buffer in model.buffers()} | {_storage(tensor) for tensor in given or []}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage freed on the way would lend its address to the next

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
