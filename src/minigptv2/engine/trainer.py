"""Runs optimizer steps under DeepSpeed for any module that returns sums: forward, backward, step guard, update.

The loss sum is divided once, by the weight over all ranks and micro-batches. Packing, accumulation and world size
therefore cannot change the gradient. The training state is read and written here, by parameter name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from minigptv2.batch import MicroBatch, StepOutput, copied_to
from minigptv2.cluster import distributed
from minigptv2.engine.checkpoint import CheckpointState, Identity
from minigptv2.engine.config import TrainConfig
from minigptv2.engine.guard import NO_LABELS, StepGuard
from minigptv2.engine.optimizer import adamw, dropout_seed, learning_rate
from minigptv2.engine.zero import LOSS_SCALE, elements_held, shape_of, zero_backend


@dataclass(frozen=True)
class StepReport:
    """The result of one step, over all ranks.

    `loss` is the mean over supervised tokens by their loss weights, whose sum is `weight`. Without loss weights it is
    the plain mean, as `task_loss` always is. `log_sums` are those of the micro-batches, added up. `skipped` is the
    reason why the step was skipped, or None. `suspects` are the numbers of this rank's micro-batches whose own loss is
    not finite.
    """

    step: int
    loss: float
    task_loss: list[float]
    task_tokens: list[float]
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised: int
    images: int
    weight: float = 0.0
    log_sums: tuple[float, ...] = ()
    skipped: str | None = None
    suspects: tuple[int, ...] = ()


class Trainer:
    """Trains a module under DeepSpeed.

    `parameters` maps names to the parameters of `model`; those that require gradients are trained. `seed` fixes
    dropout, which is a function of (seed, step, rank), so that a resumed run repeats it.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        config: TrainConfig,
        deepspeed_config: dict[str, Any],
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        import deepspeed

        self.config = config
        self.device = device
        self.seed = seed
        self.step = 0
        self.guard = StepGuard(config.guard)
        self.zero = zero_backend(deepspeed_config)
        self.parameters = parameters
        self.trainable = {name: p for name, p in parameters.items() if p.requires_grad}
        self.zero.prepare(model)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=adamw(self.trainable, config),
            config=deepspeed_config,
            dist_init_required=False,
        )
        self.zero.attach(self.engine, self.trainable)

    @property
    def model(self) -> nn.Module:
        """The trained module."""
        return self.engine.module

    def train_step(self, batches: list[MicroBatch]) -> StepReport:
        """Run forward and backward over this rank's micro-batches, then update the weights or skip the step.

        A collective; every rank must pass the same number of micro-batches. If the step guard skips the step, no weight
        and no moment changes and the learning rate does not advance. The step is counted and the report has the reason.
        """
        self.engine.train()
        torch.manual_seed(dropout_seed(self.seed, self.step, distributed.rank()))
        weight = sum(batch.weight for batch in batches)
        total = float(distributed.sum_over_ranks(torch.tensor(weight, dtype=torch.float64, device=self.device)))
        if total == 0:
            return self._skip(self._report([0.0, 0.0, 0.0], 0.0, 0), NO_LABELS, [])
        # DeepSpeed averages gradients over ranks; times world_size that is the sum, and the sum over `total` the mean.
        scale = distributed.world_size() / total
        sums: list[Tensor] = []
        for number, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            with record_function("forward"):
                output = self.engine(**batch.arguments_on(self.device))
            with record_function("backward"):
                self.engine.backward(output["loss_sum"] * scale, scale_wrt_gas=False)
            sums.append(_sums(output))
        assert sums, "every rank needs at least one micro-batch"
        squared_norm = self.zero.squared_norm().to(self.device)
        known = _known_sums(batches, self.device)
        summed = distributed.sum_over_ranks(torch.cat([known, torch.stack(sums).sum(0), squared_norm]))
        *values, squared = summed.tolist()  # the only time in a step that the host waits for the device
        report = self._report(values, total, len(batches[0].log_sums))
        norm = math.sqrt(squared) if squared >= 0 else math.nan
        if reason := self.guard.skip_reason(report.loss, norm):
            return self._skip(replace(report, gradient_norm=norm), reason, sums)
        for group in self.optimizer.param_groups:
            group["lr"] = report.learning_rate
        with record_function("update"):
            gradient_norm = self.zero.update()
        self.step += 1
        self.guard.record_applied(report.loss, norm)
        return replace(report, gradient_norm=gradient_norm)

    def rehearse(self, batch: MicroBatch) -> None:
        """Run forward and backward over `batch` and skip the update: only memory is allocated."""
        self.engine.train()
        self.engine.set_gradient_accumulation_boundary(True)
        output = self.engine(**batch.arguments_on(self.device))
        self.engine.backward(output["loss_sum"] / max(1.0, float(output["num_tokens"])), scale_wrt_gas=False)
        self.zero.skip()

    def _skip(self, report: StepReport, reason: str, sums: list[Tensor]) -> StepReport:
        """Change no weight and no moment, clear the gradients and count the step; the same on all ranks."""
        norm = report.gradient_norm
        if sums and self.engine.fp16_enabled() and math.isfinite(report.loss) and not math.isfinite(norm):
            self.engine.step()  # its loss scaler finds the same overflow and lowers the scale
            self.guard.in_a_row -= 1
        elif sums:
            self.zero.skip()
        self.step += 1
        self.guard.record_skipped()
        suspects = tuple(number for number, values in enumerate(sums) if not math.isfinite(values[0]))
        return replace(report, skipped=reason, suspects=suspects)

    def _report(self, values: list[float], total: float, num_log_sums: int) -> StepReport:
        """Return sums over all ranks, those of `_known_sums` and `_sums`, as a report."""
        tokens, images, log_sums = values[0], values[1], values[2 : 2 + num_log_sums]
        loss_sum, by_task = values[2 + num_log_sums], values[3 + num_log_sums :]
        task_loss, task_tokens = by_task[: len(by_task) // 2], by_task[len(by_task) // 2 :]
        return StepReport(
            step=self.step,
            loss=loss_sum / total if total else 0.0,
            task_loss=[loss / count if count else 0.0 for loss, count in zip(task_loss, task_tokens, strict=True)],
            task_tokens=task_tokens,
            learning_rate=learning_rate(self.step - self.guard.skipped, self.config),
            gradient_norm=0.0,
            tokens=int(tokens),
            supervised=int(sum(task_tokens)),
            images=int(images),
            weight=total,
            log_sums=tuple(log_sums),
        )

    def checkpoint_state(self, position: int, identity: Identity, config: dict[str, Any]) -> CheckpointState:
        """Return what a checkpoint keeps besides tensors; arguments are fields of `CheckpointState`."""
        guard = replace(self.guard.state(), loss_scale=self._loss_scale())
        return CheckpointState(self.step, position, identity, config, self.guard.skipped, guard)

    def restore_state(self, state: CheckpointState) -> None:
        """Restore step, step guard and loss scaler from a checkpoint."""
        self.step = state.step
        self.guard.skipped = state.skipped
        self.guard.load_state(state.guard)
        if self.zero.loss_scaler is not None:
            for key, value in state.guard.loss_scale.items():
                setattr(self.zero.loss_scaler, key, value)

    def _loss_scale(self) -> dict[str, Any]:
        """Return the state of fp16's dynamic loss scaler; empty for bf16 and fp32."""
        scaler = self.zero.loss_scaler
        return {} if scaler is None else {key: getattr(scaler, key) for key in LOSS_SCALE}

    def held_by_part(self) -> dict[str, tuple[int, int]]:
        """Return, by first component of the parameter names, the elements this rank holds and all elements."""
        held: dict[str, tuple[int, int]] = {}
        for name, parameter in self.parameters.items():
            part = name.split(".", 1)[0]
            mine, all_ = held.get(part, (0, 0))
            held[part] = (mine + elements_held(parameter), all_ + math.prod(shape_of(parameter)))
        return held

    def trained_weights(self) -> dict[str, Tensor]:
        """Return fp32 CPU copies of all trained weights by name, on the main rank; empty elsewhere. A collective."""
        return self._read_all(None)

    def moments(self, key: str) -> dict[str, Tensor]:
        """Return one of `MOMENTS` by parameter name, as `trained_weights` does."""
        if self.step == self.guard.skipped:  # no update yet: the optimizer has no state
            self.zero.make_moments(0)
        return self._read_all(key)

    def set_state(self, key: str | None, values: dict[str, Tensor], *, updates: int) -> None:
        """Set the fp32 weights (`key` None) or one of `MOMENTS`, after `updates` updates. A collective.

        `values` holds whole tensors on the main rank and is ignored elsewhere. The weights of the model follow.
        """
        self.zero.make_moments(updates)
        for name, parameter in self.trainable.items():
            value = values.get(name, torch.empty(shape_of(parameter)))
            self.zero.write(parameter, key, distributed.broadcast(value.to(self.device)))

    def _read_all(self, key: str | None) -> dict[str, Tensor]:
        """Gather one tensor at a time; only the main rank keeps them."""
        kept = {}
        for name, parameter in self.trainable.items():
            value = self.zero.read(parameter, key)
            if distributed.is_main():
                kept[name] = value.detach().float().cpu().reshape(shape_of(parameter)).clone()
        return kept


def _sums(output: StepOutput) -> Tensor:
    """Return float64 [1 + 2 tasks] of one micro-batch: loss sum, loss by task, tokens by task."""
    parts = (output["loss_sum"].detach().view(1), output["task_loss"], output["task_tokens"])
    return torch.cat([part.double() for part in parts])


def _known_sums(batches: list[MicroBatch], device: torch.device) -> Tensor:
    """Return float64 [2 + log sums] over the micro-batches of a step: tokens, images and the log sums.

    One copy per step: a number copied in a micro-batch would make the host wait for the device.
    """
    counts = [sum(batch.counts[key] for batch in batches) for key in ("tokens", "images")]
    log_sums = [sum(values) for values in zip(*(batch.log_sums for batch in batches), strict=True)]
    return copied_to(torch.tensor([*counts, *log_sums], dtype=torch.float64), device)
