"""Decides which steps to skip, from sums over all ranks, before the optimizer changes any weight.

A step is skipped if its loss or gradient norm is not finite, if one of them is far above the last steps, or if no token
has a label. A skipped step changes no weight and no moment and does not advance the learning rate, but it is counted.
The decision depends on all-reduced numbers only, so that all ranks agree without communicating.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minigptv2.engine.config import GuardConfig
from minigptv2.errors import StepError

NO_LABELS = "no token has a label"


@dataclass(frozen=True)
class GuardState:
    """What a checkpoint keeps of the step guard and of fp16's dynamic loss scaler (empty in bf16 and fp32)."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    in_a_row: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)


class StepGuard:
    """Decides which steps to skip. Checkpoints keep its history, so that a resumed run decides alike."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._norms: deque[float] = deque(maxlen=config.spike_window)
        self.skipped = 0
        """Steps skipped since the run began."""
        self.in_a_row = 0
        """Steps skipped since the last applied one."""

    def skip_reason(self, loss: float, norm: float) -> str | None:
        """Return why the step must be skipped, or None. `loss` and `norm` are over all ranks."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        for name, value, history in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            if self._is_spike(value, history):
                mean = sum(history) / len(history)
                return f"the {name} is {value:.4g}, {self._config.spike_sigma:g} sigma above its mean {mean:.4g}"
        return None

    def _is_spike(self, value: float, history: deque[float]) -> bool:
        if not self._config.spike_sigma or len(history) < self._config.spike_window:
            return False
        mean = sum(history) / len(history)
        sigma = math.sqrt(sum((x - mean) ** 2 for x in history) / len(history))
        return value > mean + self._config.spike_sigma * max(sigma, 0.05 * abs(mean))

    def record_applied(self, loss: float, norm: float) -> None:
        """Record a step that updated the weights."""
        self._losses.append(loss)
        self._norms.append(norm)
        self.in_a_row = 0

    def record_skipped(self) -> None:
        """Record a skipped step."""
        self.skipped += 1
        self.in_a_row += 1

    def stop_if_too_many(self, step: int, reason: str) -> None:
        """Raise `StepError` once `max_skipped_in_a_row` steps in a row were skipped."""
        if self.in_a_row >= self._config.max_skipped_in_a_row:
            raise StepError(
                f"{self.in_a_row} steps in a row were skipped, last step {step}: {reason}. The weights are those "
                "before them. Replay a saved step with `minigptv2 replay`. Limit: train.guard.max_skipped_in_a_row."
            )

    def state(self) -> GuardState:
        """Return what a checkpoint keeps."""
        return GuardState(list(self._losses), list(self._norms), self.in_a_row)

    def load_state(self, state: GuardState) -> None:
        """Restore what `state` returned."""
        self._losses.extend(state.losses)
        self._norms.extend(state.norms)
        self.in_a_row = state.in_a_row


def squared_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares of all elements, float64 []; it is not finite if any element is not."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm([g.float() if g.dtype == torch.float16 else g for g in gradients])
    return torch.stack([norm.to(device=device, dtype=torch.float64) for norm in norms]).square().sum()
