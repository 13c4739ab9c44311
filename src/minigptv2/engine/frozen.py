"""Frozen linear layers that keep nothing of a forward pass.

DeepSpeed's ZeRO-3 linear keeps its input for the gradient of its weight, also where the weight is frozen and there is
no such gradient (`runtime/zero/linear.py`, 0.19.8): about a third of what a LLaMA with LoRA keeps per token, derived
from its layers and not measured. torch's own keeps no input, but keeps the gathered weight. This one keeps a reference
to the parameter, whose data ZeRO-3 takes away after the forward pass and puts back for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
