"""Computes the logits of the language model, or losses in chunks that never hold all logits at once.

With 32,000 pieces, the float32 logits of one token, their softmax and its gradient take 0.4 MB. 4,000 supervised tokens
take 1.5 GB at the peak of a step. In chunks they take at most a few hundred MiB for any pack.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 128 * 1024**2
"""Size of the float32 logits of one chunk."""


class _FrozenHeadLosses(torch.autograd.Function):
    """Computes the losses of all chunks, and their gradients with respect to the hidden states in the same pass.

    The loss of a token depends only on its own hidden state, so that the upstream gradient only scales its row.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradients = torch.empty_like(hidden)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = torch.ops.aten.linear(hidden[part], weight).float()
            losses[part] = cross_entropy(logits, targets[part], reduction="none")
            probabilities = logits.softmax(dim=-1)
            probabilities[torch.arange(len(logits), device=logits.device), targets[part]] -= 1.0
            gradients[part] = probabilities.to(hidden.dtype).matmul(weight)
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * upstream[0][:, None]).to(gradients.dtype), None, None, None


class ChunkedHead(nn.Linear):
    """An `lm_head` that can also return losses. `chunk_head` makes it from an existing layer."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """[..., width] -> logits [..., vocabulary]; with `targets` int64 [T] and [T, width] -> float32 losses [T]."""
        if targets is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        rows = max(1, CHUNK_BYTES // (4 * self.out_features))
        if not self.weight.requires_grad and self.bias is None and torch.is_grad_enabled():
            return _FrozenHeadLosses.apply(hidden, self.weight, targets, rows)
        if len(targets) <= rows:
            return self._losses(hidden, targets=targets)
        recomputed = partial(checkpoint, use_reentrant=False) if torch.is_grad_enabled() else _call
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat([recomputed(self._losses, some, targets=wanted) for some, wanted in parts])

    def _losses(self, hidden: Tensor, *, targets: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        return cross_entropy(logits, targets, reduction="none")


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def chunk_head(head: nn.Linear) -> None:
    """Turn `head` into a `ChunkedHead`, in place."""
    head.__class__ = ChunkedHead
