"""Checks, after the first steps of a start, that every trainable tensor has changed and no frozen one has.

A loss curve does not show wrongly frozen or wrongly trained weights. One number is kept per tensor (the sum of the bits
of this rank's part), so that the check costs two passes over the weights per start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minigptv2.cluster import distributed
from minigptv2.engine.trainer import Trainer
from minigptv2.errors import StepError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Movement:
    """Records the weights when it is created and checks them `steps` updates later; 0 disables the check."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self._before = _fingerprints(trainer) if steps else []
        self._start = trainer.step - trainer.guard.skipped
        self._due = trainer.step - trainer.guard.skipped + steps if steps else None

    def check_when_due(self, trainer: Trainer, *, last: bool) -> bool:
        """Check once, after enough updates or after the last step; return whether the check ran now.

        A collective when it runs. Raises `StepError` on all ranks, naming the wrong tensors.
        """
        updates = trainer.step - trainer.guard.skipped
        if self._due is None or not (updates >= self._due or (last and updates > self._start)):
            return False
        self._due = None
        after = _fingerprints(trainer)
        differs = distributed.any_over_ranks([a != b for a, b in zip(self._before, after, strict=True)])
        self._before = []
        pairs = list(zip(trainer.parameters.items(), differs, strict=True))
        unchanged = [name for (name, parameter), moved in pairs if parameter.requires_grad and not moved]
        changed = [name for (name, parameter), moved in pairs if not parameter.requires_grad and moved]
        problems = [f"{len(unchanged)} trainable tensors have not changed, first {unchanged[0]}"] if unchanged else []
        problems += [f"{len(changed)} frozen tensors have changed, first {changed[0]}"] if changed else []
        if problems:
            raise StepError(
                f"step {trainer.step}: {' and '.join(problems)}. train.guard.movement_steps=0 disables this check."
            )
        return True


def _fingerprints(trainer: Trainer) -> list[int]:
    """Return one number per parameter for what this rank holds of it; 0 for nothing."""
    sums = [_bits(trainer.zero.held(parameter)) for parameter in trainer.parameters.values()]
    return [int(value) for value in torch.stack(sums).tolist()] if sums else []


def _bits(tensor: Tensor | None) -> Tensor:
    """Return the sum of the tensor's elements read as integers, int64 [], on the CPU."""
    if tensor is None or tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64)
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64).cpu()
