"""Did it move? After the first steps of a start, every trainable tensor must have changed and no frozen one may have.

Silently frozen weights and silently trained ones look alike in a loss curve. One number is kept per tensor (the sum of
its bits, of this rank's shard), so it costs one pass over the weights, twice a start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minigptv2.cluster import distributed
from minigptv2.engine.trainer import Trainer
from minigptv2.errors import StepError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Movement:
    """The weights as they were when this was made, and the check against what they are `steps` updates later."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self._before = _fingerprints(trainer) if steps else []
        self._start = trainer.step - trainer.guard.skipped
        self._due = trainer.step - trainer.guard.skipped + steps if steps else None

    def check_when_due(self, trainer: Trainer, *, last: bool) -> bool:
        """Check once, after enough updates or after the last step (then a collective); whether it was done now.

        Raises `StepError` on all ranks, naming the tensors that do not do what they should.
        """
        updates = trainer.step - trainer.guard.skipped
        if self._due is None or not (updates >= self._due or (last and updates > self._start)):
            return False
        self._due = None
        after = _fingerprints(trainer)
        moved = distributed.any_over_ranks([a != b for a, b in zip(self._before, after, strict=True)])
        self._before = []
        pairs = list(zip(trainer.parameters.items(), moved, strict=True))
        stuck = [name for (name, parameter), changed in pairs if parameter.requires_grad and not changed]
        loose = [name for (name, parameter), changed in pairs if not parameter.requires_grad and changed]
        said = [f"{len(stuck)} trainable tensors have not moved, first {stuck[0]}"] if stuck else []
        said += [f"{len(loose)} frozen tensors have moved, first {loose[0]}"] if loose else []
        if said:
            where = f"(step {trainer.step}; train.guard.movement_steps: 0 leaves this check out)"
            raise StepError(f"{'; '.join(said)} {where}")
        return True


def _fingerprints(trainer: Trainer) -> list[int]:
    """One number per parameter, of what this rank holds of it; 0 for nothing."""
    sums = [_bits(_held(parameter, trainer.stage)) for parameter in trainer.parameters.values()]
    return [int(value) for value in torch.stack(sums).tolist()] if sums else []


def _bits(tensor: Tensor | None) -> Tensor:
    if tensor is None or tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64)
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64).cpu()


def _held(parameter: nn.Parameter, stage: int) -> Tensor | None:
    """What this rank holds of a parameter: the fp32 master where it is trained, else the weight itself."""
    if stage == 3 and parameter.requires_grad:
        from deepspeed.utils import safe_get_local_fp32_param

        return safe_get_local_fp32_param(parameter)
    if stage == 3:
        return getattr(parameter, "ds_tensor", parameter)
    mapping = getattr(parameter, "_hp_mapping", None)
    return mapping.get_hp_fragment() if mapping is not None else parameter
