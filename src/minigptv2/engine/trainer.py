"""One optimizer step under DeepSpeed, for any module that returns sums: forward, backward, guard, update.

The loss is a sum and a count, divided once by the count over all ranks and micro-batches, so packing, accumulation
and world size cannot change the gradient. The state of training, by parameter name, goes in and out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.batch import MicroBatch, StepOutput
from minigptv2.cluster import distributed
from minigptv2.engine.checkpoint import MOMENTS
from minigptv2.engine.config import TrainConfig
from minigptv2.engine.guard import NO_LABELS, StepGuard, discarding, local_gradients, squared_norm
from minigptv2.engine.optimizer import learning_rate
from minigptv2.engine.zero import assign, elements_held, keep_no_inputs, shape_of, zero_stage

LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scaler (fp16) remembers."""


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all ranks. Losses are means per supervised token.

    `skipped`: why the step was discarded; None: it reached the weights. `suspects`: numbers of this rank's
    micro-batches whose own loss is not finite.
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
    skipped: str | None = None
    suspects: tuple[int, ...] = ()


class Trainer:
    """DeepSpeed's engine with our contract around it.

    `parameters` maps names to the module's parameters; those that require gradients are trained. `seed` fixes
    dropout: its stream is a function of (seed, step, rank), so a resumed run repeats it.
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
        self.stage = zero_stage(deepspeed_config)
        self.parameters = parameters
        self.trainable = {name: p for name, p in parameters.items() if p.requires_grad}
        if self.stage == 3:
            keep_no_inputs(model)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=_adamw(self.trainable, config),
            config=deepspeed_config,
            dist_init_required=False,
        )
        if self.stage in (1, 2):
            # 0.19.8 links the moments of all parameter groups after the first group's update, before the others' exist:
            # its getters then never find them. Made now, they are there to be linked.
            self._make_optimizer_state(0)

    @property
    def model(self) -> nn.Module:
        """The module itself, sharded or not."""
        return self.engine.module

    def train_step(self, batches: list[MicroBatch]) -> StepReport:
        """Forward and backward over this rank's micro-batches, then one update agreed by all ranks, or none.

        Every rank must bring the same number of micro-batches. A step that the guard discards changes no weight and no
        moment and does not advance the learning rate; it counts, and the report says why.
        """
        self.engine.train()
        torch.manual_seed(dropout_seed(self.seed, self.step, distributed.rank()))
        supervised = sum(batch.weight for batch in batches)
        total = int(distributed.sum_over_ranks(torch.tensor(supervised, dtype=torch.float64, device=self.device)))
        if total == 0:
            return self._discard(self._report(None, 0), NO_LABELS, [])
        # DeepSpeed averages gradients over ranks; times world_size that is the sum, and the sum over `total` the mean.
        scale = distributed.world_size() / total
        sums: list[Tensor] = []
        for number, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            output = self.engine(**batch.inputs_on(self.device))
            self.engine.backward(output["loss_sum"] * scale, scale_wrt_gas=False)
            sums.append(_sums(output, batch))
        assert sums, "the data plan gives every rank at least one micro-batch"
        measured = distributed.sum_over_ranks(torch.cat([torch.stack(sums).sum(0), self._squared_norm()]))
        report = self._report(measured[:-1], total)
        norm = math.sqrt(measured[-1]) if measured[-1] >= 0 else math.nan
        if reason := self.guard.verdict(report.loss, norm):
            return self._discard(replace(report, gradient_norm=norm), reason, sums)
        for group in self.optimizer.param_groups:
            group["lr"] = report.learning_rate
        plain_norm = self._plain_gradient_norm() if self.stage == 0 else None
        self.engine.step()
        self.step += 1
        self.guard.passed(report.loss, norm)
        return replace(
            report, gradient_norm=float(self.engine.get_global_grad_norm() if plain_norm is None else plain_norm)
        )

    def rehearse(self, batch: MicroBatch) -> None:
        """Run forward and backward over `batch` and forget it: nothing changes but the memory that was asked for."""
        self.engine.train()
        self.engine.set_gradient_accumulation_boundary(True)
        output = self.engine(**batch.inputs_on(self.device))
        self.engine.backward(output["loss_sum"] / max(1.0, float(output["num_tokens"])), scale_wrt_gas=False)
        if self.stage == 0:
            self.engine.zero_grad()
        else:
            with discarding(self.optimizer):
                self.engine.step()

    def _squared_norm(self) -> Tensor:
        """float64 [1]: this rank's part of the squared gradient norm over all ranks."""
        gradients = local_gradients(self.optimizer, self.stage, list(self.trainable.values()))
        shared = distributed.world_size() if self.stage == 0 else 1  # without ZeRO every rank holds them all
        scale = float(getattr(self.optimizer, "loss_scale", 1.0))
        return squared_norm(gradients, self.device).reshape(1) / (shared * scale**2)

    def _discard(self, report: StepReport, reason: str, sums: list[Tensor]) -> StepReport:
        """Leave weights and moments as they are, clear the gradients and count the step. The same on all ranks."""
        norm = report.gradient_norm
        if sums and self.stage == 0:
            self.engine.zero_grad()
        elif sums and self.engine.fp16_enabled() and math.isfinite(report.loss) and not math.isfinite(norm):
            self.engine.step()  # its loss scaler finds the same overflow, and lowers the scale
            self.guard.in_a_row -= 1
        elif sums:
            with discarding(self.optimizer):
                self.engine.step()
        self.step += 1
        self.guard.discarded()
        suspects = tuple(number for number, values in enumerate(sums) if not math.isfinite(values[0]))
        return replace(report, skipped=reason, suspects=suspects)

    def _plain_gradient_norm(self) -> Tensor:
        """The norm before clipping, which DeepSpeed does not report without ZeRO."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.trainable.values() if p.grad is not None])

    def _report(self, sums: Tensor | None, total: int) -> StepReport:
        """Sums over all ranks as a report; None: nothing was run. Layout of `sums`: see `_sums`."""
        values = [0.0] * 3 if sums is None else sums.tolist()
        num_tasks = (len(values) - 3) // 2
        task_loss, task_tokens = values[3 : 3 + num_tasks], values[3 + num_tasks :]
        return StepReport(
            step=self.step,
            loss=values[0] / max(1, total),
            task_loss=[loss / count if count else 0.0 for loss, count in zip(task_loss, task_tokens, strict=True)],
            task_tokens=task_tokens,
            learning_rate=learning_rate(self.step - self.guard.skipped, self.config),
            gradient_norm=0.0,
            tokens=int(values[1]),
            supervised=total,
            images=int(values[2]),
        )

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, step and position: fields of `CheckpointState`."""
        return {"skipped": self.guard.skipped, "guard": self.guard.state() | {"loss_scale": self._loss_scale()}}

    def restore_extra(self, skipped: int, guard: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""
        self.guard.skipped = skipped
        self.guard.load_state(guard)
        if self._loss_scale():
            for key, value in guard.get("loss_scale", {}).items():
                setattr(self.optimizer.loss_scaler, key, value)

    def _loss_scale(self) -> dict[str, Any]:
        """The state of fp16's dynamic loss scale; empty for bf16 and fp32."""
        scaler = getattr(self.optimizer, "loss_scaler", None)
        return {key: getattr(scaler, key) for key in LOSS_SCALE} if getattr(scaler, "dynamic", False) else {}

    def held_by_part(self) -> dict[str, tuple[int, int]]:
        """Per first component of the parameters' names: elements this rank holds, and elements in all."""
        held: dict[str, tuple[int, int]] = {}
        for name, parameter in self.parameters.items():
            part = name.split(".", 1)[0]
            mine, all_ = held.get(part, (0, 0))
            held[part] = (mine + elements_held(parameter), all_ + math.prod(shape_of(parameter)))
        return held

    def trained_weights(self) -> dict[str, Tensor]:
        """fp32 CPU copies of all trained weights by name, on the main rank; nothing on the others. A collective."""
        return self._read_all(None)

    def moments(self, key: str) -> dict[str, Tensor]:
        """One of `MOMENTS` by parameter name, as `trained_weights`."""
        if self.step == self.guard.skipped:  # no update yet: the optimizer has no state
            self._make_optimizer_state(0)
        return self._read_all(key)

    def set_state(self, key: str | None, values: dict[str, Tensor], *, updates: int) -> None:
        """Set fp32 weights (`key` None) or one of `MOMENTS` (a collective); `updates`: how many were made so far.

        `values` holds each tensor whole on the main rank, and the others receive it. The model's own weights follow.
        """
        self._make_optimizer_state(updates)
        for name, parameter in self.trainable.items():
            value = values.get(name, torch.empty(shape_of(parameter)))
            self._write(parameter, key, distributed.broadcast(value.to(self.device)))

    def _read_all(self, key: str | None) -> dict[str, Tensor]:
        """Only the main rank keeps what is gathered, one tensor at a time on the others."""
        kept = {}
        for name, parameter in self.trainable.items():
            value = self._read(parameter, key)
            if distributed.is_main():
                kept[name] = value.detach().float().cpu().reshape(shape_of(parameter)).clone()
        return kept

    def _read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            state = parameter if key is None else self.optimizer.state[parameter][key]
            return state
        value = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
        assert value is not None and value.numel() == math.prod(shape_of(parameter)), "an empty tensor from DeepSpeed"
        return value

    def _write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        import deepspeed.utils as utils

        if key is None:  # what the forward pass reads; below, the fp32 master that the optimizer updates
            assign(parameter, lambda: value)
        if self.stage == 0:
            with torch.no_grad():
                (parameter if key is None else self.optimizer.state[parameter][key]).copy_(value)
        elif self.stage == 3:
            current = (
                utils.safe_get_local_fp32_param(parameter)
                if key is None
                else utils.safe_get_local_optimizer_state(parameter, key)
            )
            # DeepSpeed's whole-tensor setter fails where the elements do not divide by the ranks: set the shard.
            padded = torch.zeros(current.numel() * distributed.world_size(), device=self.device)
            padded[: value.numel()] = value.flatten()
            shard = padded.narrow(0, current.numel() * distributed.rank(), current.numel())
            if key is None:
                utils.safe_set_local_fp32_param(parameter, shard)
            else:
                utils.safe_set_local_optimizer_state(parameter, shard, key)
        elif key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)

    def _make_optimizer_state(self, step: int) -> None:
        """Give the wrapped AdamW the state it would have after `step` steps: torch makes it at the first one only."""
        wrapped = self.optimizer if self.stage == 0 else self.optimizer.optimizer
        if self.stage == 3:
            flat = self.optimizer.fp32_partitioned_groups_flat
        elif self.stage == 0:
            flat = list(self.trainable.values())
        else:
            flat = self.optimizer.single_partition_of_fp32_groups
        for tensor in flat:
            state = wrapped.state[tensor]
            state["step"] = torch.tensor(float(step))
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(tensor))
        if self.stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()  # else its getters and setters find no moments


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's dropout in a step, so that a resumed or replayed step draws the same."""
    return hash((seed, step, rank)) & 0x7FFFFFFF


def _adamw(trainable: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and none on norms, biases and other vectors."""
    matrices = [p for p in trainable.values() if len(shape_of(p)) > 1]
    vectors = [p for p in trainable.values() if len(shape_of(p)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=betas)


def _sums(output: StepOutput, batch: MicroBatch) -> Tensor:
    """float64 [3 + 2 tasks]: loss sum, tokens, images, loss by task, tokens by task of one micro-batch."""
    tokens, images = batch.counts["tokens"], batch.counts["images"]
    head = torch.stack(
        [output["loss_sum"].detach().double(), *output["loss_sum"].new_tensor([tokens, images]).double()]
    )
    return torch.cat([head, output["task_loss"].double(), output["task_tokens"].double()])
