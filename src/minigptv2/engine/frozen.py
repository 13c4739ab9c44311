"""Replaces frozen linear layers by ones that do not keep their inputs for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

Gather = Callable[[nn.Parameter], AbstractContextManager[object]]


class _FrozenLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: nn.Parameter, bias: Tensor | None, gather: Gather) -> Tensor:
        # Attributes, not `save_for_backward`: recomputation compares saved tensors, and this one comes and goes.
        ctx.weight, ctx.gather = weight, gather
        return torch.ops.aten.linear(inputs, weight, bias)  # `functional.linear` is DeepSpeed's after `zero.Init`

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        with ctx.gather(ctx.weight):
            return gradients[0].matmul(ctx.weight), None, None, None


class FrozenLinear(nn.Linear):
    """An `nn.Linear` whose weight and bias are not trained. `drop_frozen_inputs` makes it from an existing layer."""

    gather: Gather

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]; the backward pass keeps the parameter but not the inputs."""
        return _FrozenLinearFunction.apply(inputs, self.weight, self.bias, self.gather)


def drop_frozen_inputs(model: nn.Module, gather: Gather = nullcontext) -> int:
    """Turn every frozen `nn.Linear` of `model` into a `FrozenLinear`, in place; return how many.

    Within the context `gather(weight)` the whole weight is available to the backward pass.
    """
    count = 0
    for module in model.modules():
        if type(module) is nn.Linear and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = FrozenLinear
            cast(FrozenLinear, module).gather = gather
            count += 1
    return count
