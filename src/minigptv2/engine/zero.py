"""ZeRO-3 parameters: making them, filling them, reading them, and counting what a rank holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.cluster import distributed


def zero_stage(deepspeed_config: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed config asks for."""
    return int(deepspeed_config.get("zero_optimization", {}).get("stage", 0))


def construction(deepspeed_config: dict[str, Any]) -> AbstractContextManager[object]:
    """The context to build modules in: `zero.Init` under stage 3, so that no rank ever holds the model whole."""
    if zero_stage(deepspeed_config) != 3:
        return nullcontext()
    import deepspeed

    # The dtype is read from the config. Passing `dtype=` is a trap: 0.19.8 ignores it where the device has no fp16,
    # and makes bf16 parameters of an fp32 run on the CPU without a word (`Init._set_dtype`, operator precedence).
    return deepspeed.zero.Init(config_dict_or_path=deepspeed_config)


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The full shape of a parameter, sharded or not."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def assign(parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
    """Fill a parameter. Call it on all ranks: of a sharded one, each takes its own part of the value.

    A `value` with a method `rows(start, stop)` (a tensor in a file) is asked for the rows that hold this rank's part
    only, so all ranks together read each byte once, but for rows that two of them share.
    """
    if not hasattr(parameter, "ds_id"):
        with torch.no_grad():
            parameter.copy_(value().to(parameter.dtype))
        return
    if parameter.ds_status.name == "NOT_AVAILABLE":  # type: ignore[attr-defined]
        _fill_shard(parameter, value)
        parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # hpZ's copy is of before; made anew at a gather
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):  # kept whole on every rank
        if distributed.rank() == 0:
            with torch.no_grad():
                parameter.copy_(value().to(parameter.dtype))


def _fill_shard(parameter: Any, value: Callable[[], Tensor]) -> None:
    """Copy this rank's part of the flattened value into its shard; the last rank's may end in padding."""
    shard = parameter.ds_tensor
    start = shard.numel() * distributed.rank()
    stop = min(start + shard.numel(), parameter.ds_numel)
    if start >= stop:
        return
    rows = getattr(value, "rows", None)
    if rows is None:
        part = value().flatten()[start:stop]
    else:
        width = parameter.ds_numel // parameter.ds_shape[0]
        first = start // width
        part = rows(first, -(-stop // width)).flatten()[start - first * width : stop - first * width]
    with torch.no_grad():
        shard[: stop - start].copy_(part.to(shard.dtype))


class LoadProgress:
    """`assign` that says how far it is: a line every tenth of the elements, once loading takes longer than moments."""

    def __init__(self, elements: int, say: Callable[[str], None], *, quiet_s: float = 5.0) -> None:
        self._total, self._say, self._quiet_s = max(1, elements), say, quiet_s
        self._done, self._said = 0, 0
        self._began = time.monotonic()

    def __call__(self, parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
        assign(parameter, value)
        self._done += math.prod(shape_of(parameter))
        tenth = 10 * self._done // self._total
        seconds = time.monotonic() - self._began
        if tenth > self._said and seconds > self._quiet_s:
            self._said = tenth
            self._say(f"weights: {10 * tenth} % in {seconds:.0f} s")


def full_value(parameter: nn.Parameter) -> Tensor:
    """A CPU copy of the whole parameter, in its own dtype. A collective under ZeRO-3: call it on all ranks."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().cpu().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()


def elements_held(parameter: nn.Parameter) -> int:
    """Elements of the parameter that this rank keeps between steps: its shard, or all if it is not sharded."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.numel()
    kept_whole = parameter.numel() if getattr(parameter, "ds_persist", False) else 0
    return max(parameter.ds_tensor.numel(), kept_whole)


class _FrozenLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # An attribute and not `save_for_backward`: recomputation compares saved tensors, and this one comes and goes.
        ctx.weight = weight
        return torch.ops.aten.linear(inputs, weight, bias)  # `functional.linear` is DeepSpeed's after `zero.Init`

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        weight = ctx.weight
        status = getattr(weight, "ds_status", None)
        released = status is not None and status.name == "NOT_AVAILABLE"
        if released:  # no hook of the module ran; DeepSpeed's own linear does the same
            weight.all_gather()
        try:
            return gradients[0].matmul(weight), None, None
        finally:
            if released:
                weight.partition()


class FrozenLinear(nn.Linear):
    """`nn.Linear` whose weight and bias are not trained. Made of an existing layer by `keep_no_inputs`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]; nothing but the parameter itself is kept for the backward pass."""
        return _FrozenLinearFunction.apply(inputs, self.weight, self.bias)


def keep_no_inputs(model: nn.Module) -> int:
    """Turn every frozen `nn.Linear` of `model` into a `FrozenLinear`, in place; returns how many."""
    count = 0
    for module in model.modules():
        if type(module) is nn.Linear and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = FrozenLinear
            count += 1
    return count
