"""The step guard: what must not reach the weights, judged on sums over all ranks before the optimizer moves.

A step is discarded if a loss or gradient is not finite, if it is far outside what the last steps were, or if no token
carries a label. Then no weight and no moment changes and the learning rate does not advance; the step is counted. The
verdict is computed from all-reduced numbers, so it is the same on every rank without another message.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minigptv2.engine.config import GuardConfig
from minigptv2.errors import StepError

NO_LABELS = "no token carries a label"


class StepGuard:
    """Judges steps. Its memory (the last losses and norms) goes into checkpoints, so a resumed run judges alike."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._norms: deque[float] = deque(maxlen=config.spike_window)
        self.skipped = 0
        """Steps discarded since the run began."""
        self.in_a_row = 0

    def verdict(self, loss: float, norm: float) -> str | None:
        """Why the step must be discarded, or None. `loss` and `norm` are over all ranks."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        for what, value, history in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            if self._is_spike(value, history):
                mean = sum(history) / len(history)
                return f"the {what} is {value:.4g}, {self._config.spike_sigma:g} sigma above its mean {mean:.4g}"
        return None

    def _is_spike(self, value: float, history: deque[float]) -> bool:
        if not self._config.spike_sigma or len(history) < self._config.spike_window:
            return False
        mean = sum(history) / len(history)
        sigma = math.sqrt(sum((x - mean) ** 2 for x in history) / len(history))
        return value > mean + self._config.spike_sigma * max(sigma, 0.05 * abs(mean))

    def passed(self, loss: float, norm: float) -> None:
        """Note a step that reached the weights."""
        self._losses.append(loss)
        self._norms.append(norm)
        self.in_a_row = 0

    def discarded(self) -> None:
        """Note a step that did not."""
        self.skipped += 1
        self.in_a_row += 1

    def stop_if_too_many(self, step: int, reason: str) -> None:
        """Raise `StepError` once `max_skipped_in_a_row` steps in a row were discarded."""
        if self.in_a_row >= self._config.max_skipped_in_a_row:
            raise StepError(
                f"{self.in_a_row} steps in a row were discarded, last step {step}: {reason}. The weights are those "
                "before them. `minigptv2 replay` runs a kept step again; train.guard.max_skipped_in_a_row is the limit."
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": list(self._losses), "norms": list(self._norms), "in_a_row": self.in_a_row}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._losses.extend(state.get("losses", ()))
        self._norms.extend(state.get("norms", ()))
        self.in_a_row = int(state.get("in_a_row", 0))


def squared_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """float64 scalar: the sum of squares of this rank's gradients; not finite if any element is not."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm([g.float() if g.dtype == torch.float16 else g for g in gradients])
    return torch.stack([norm.to(device=device, dtype=torch.float64) for norm in norms]).square().sum()


def local_gradients(optimizer: Any, stage: int, trainable: list[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients this rank's optimizer would use in the next update, after the last micro-batch's reduction.

    Where they lie is DeepSpeed's own affair (0.19.8): whole under stage 0, shards above it.
    """
    if stage == 0:
        return [p.grad for p in trainable if p.grad is not None]
    if getattr(optimizer, "offload_optimizer", False):
        return [flat.grad for flat in optimizer.fp32_partitioned_groups_flat if flat.grad is not None]
    if getattr(optimizer, "cpu_offload", False):
        return [flat.grad for flat in optimizer.single_partition_of_fp32_groups if flat.grad is not None]
    return [grad for group in optimizer.averaged_gradients.values() for grad in group or () if grad is not None]


@contextmanager
def discarding(optimizer: Any) -> Iterator[None]:
    """Within it, a ZeRO optimizer's `step` takes its own overflow path: gradients are cleared, nothing is updated.

    DeepSpeed has no call for it. Its verdict is replaced on the object, so that all its bookkeeping stays its own; its
    warning that gradients are not finite is not let through, since ours says what was wrong.
    """

    def overflow(*args: Any, **kwargs: Any) -> bool:
        optimizer.overflow = True
        return True

    stage3 = hasattr(optimizer, "_overflow_check_and_loss_scale_update")
    name = "_overflow_check_and_loss_scale_update" if stage3 else "check_overflow"
    checked = getattr(optimizer, "check_grad_overflow", None)
    setattr(optimizer, name, overflow)
    speaker = logging.getLogger("DeepSpeed")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    if not stage3:
        optimizer.check_grad_overflow = True
    try:
        yield
        assert optimizer.overflow, "DeepSpeed did not discard the step"
    finally:
        speaker.setLevel(level)
        delattr(optimizer, name)
        if not stage3:
            optimizer.check_grad_overflow = checked
