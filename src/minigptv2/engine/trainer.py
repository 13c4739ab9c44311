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

from minigptv2.engine import distributed
from minigptv2.engine.config import TrainConfig
from minigptv2.engine.frozen import keep_no_inputs
from minigptv2.engine.schedule import learning_rate
from minigptv2.engine.sharding import assign, elements_held, shape_of, zero_stage
from minigptv2.errors import MiniGPTv2Error
from minigptv2.prompt import IGNORE

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, as torch names it."""


class StepError(MiniGPTv2Error):
    """A step that must not reach the weights."""

    exit_code = 5


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all ranks. Losses are means per supervised token."""

    step: int
    loss: float
    task_loss: list[float]
    task_tokens: list[float]
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised: int
    images: int


class Trainer:
    """DeepSpeed's engine with our contract around it.

    `parameters` maps names to the module's parameters; those that require gradients are trained. `seed` fixes
    dropout: its stream is a function of (seed, step, rank), so a resumed run repeats it.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], config: TrainConfig,
                 deepspeed_config: dict[str, Any], *, device: torch.device, seed: int) -> None:  # fmt: skip
        import deepspeed

        self.config = config
        self.device = device
        self.seed = seed
        self.step = 0
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

    @property
    def model(self) -> nn.Module:
        """The module itself, sharded or not."""
        return self.engine.module

    def train_step(self, batches: list[dict[str, Tensor]]) -> StepReport:
        """Forward and backward over this rank's micro-batches, then one update agreed by all ranks.

        Every rank must bring the same number of micro-batches. Raises `StepError` on all ranks, before any weight
        changes, if no token carries a label or the loss is not finite.
        """
        self.engine.train()
        torch.manual_seed(hash((self.seed, self.step, distributed.rank())) & 0x7FFFFFFF)
        supervised = sum(int((batch["labels"] != IGNORE).sum()) for batch in batches)
        total = int(distributed.sum_over_ranks(torch.tensor(supervised, dtype=torch.float64, device=self.device)))
        if total == 0:
            raise StepError(f"step {self.step}: no token of {self.config.global_batch_size} samples carries a label")
        # DeepSpeed averages gradients over ranks; times world_size that is the sum, and the sum over `total` the mean.
        scale = distributed.world_size() / total
        sums: Tensor | None = None
        for number, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            output = self.engine(**{key: value.to(self.device, non_blocking=True) for key, value in batch.items()})
            self.engine.backward(output["loss_sum"] * scale, scale_wrt_gas=False)
            measured = _sums(output, batch)
            sums = measured if sums is None else sums + measured
        assert sums is not None, "the data plan gives every rank at least one micro-batch"
        report = self._report(distributed.sum_over_ranks(sums), total)
        if not math.isfinite(report.loss):
            raise StepError(f"step {self.step}: the loss is {report.loss}; the weights are those of the step before")
        for group in self.optimizer.param_groups:
            group["lr"] = report.learning_rate
        norm = self._plain_gradient_norm() if self.stage == 0 else None
        self.engine.step()
        self.step += 1
        return replace(report, gradient_norm=float(self.engine.get_global_grad_norm() if norm is None else norm))

    def _plain_gradient_norm(self) -> Tensor:
        """The norm before clipping, which DeepSpeed does not report without ZeRO."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.trainable.values() if p.grad is not None])

    def _report(self, sums: Tensor, total: int) -> StepReport:
        """Sums over all ranks as a report. Layout of `sums`: see `_sums`."""
        values = sums.tolist()
        num_tasks = (len(values) - 3) // 2
        task_loss, task_tokens = values[3 : 3 + num_tasks], values[3 + num_tasks :]
        return StepReport(
            step=self.step,
            loss=values[0] / total,
            task_loss=[loss / count if count else 0.0 for loss, count in zip(task_loss, task_tokens, strict=True)],
            task_tokens=task_tokens,
            learning_rate=learning_rate(self.step, self.config),
            gradient_norm=0.0,
            tokens=int(values[1]),
            supervised=total,
            images=int(values[2]),
        )

    def held_by_part(self) -> dict[str, tuple[int, int]]:
        """Per first component of the parameters' names: elements this rank holds, and elements in all."""
        held: dict[str, tuple[int, int]] = {}
        for name, parameter in self.parameters.items():
            part = name.split(".", 1)[0]
            mine, all_ = held.get(part, (0, 0))
            held[part] = (mine + elements_held(parameter), all_ + math.prod(shape_of(parameter)))
        return held

    def trained_weights(self) -> dict[str, Tensor]:
        """fp32 CPU copies of all trained weights by name. A collective: call it on all ranks."""
        return {name: self._read(parameter, None) for name, parameter in self.trainable.items()}

    def moments(self, key: str) -> dict[str, Tensor]:
        """One of `MOMENTS` by parameter name, as `trained_weights`."""
        return {name: self._read(parameter, key) for name, parameter in self.trainable.items()}

    def restore(self, step: int, weights: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
        """Set step, fp32 weights and moments, each tensor whole on every rank. The model's own weights are set too."""
        self.step = step
        self._make_optimizer_state(step)
        for name, parameter in self.trainable.items():
            self._write(parameter, None, weights[name])
            for key in MOMENTS:
                self._write(parameter, key, moments[key][name])

    def _read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            state = parameter if key is None else self.optimizer.state[parameter][key]
            return state.detach().float().cpu().clone()
        value = (
            safe_get_full_fp32_param(parameter)
            if key is None
            else safe_get_full_optimizer_state(parameter, key)
        )  # fmt: skip
        assert value is not None and value.numel() == math.prod(shape_of(parameter)), "an empty tensor from DeepSpeed"
        return value.detach().float().cpu().reshape(shape_of(parameter)).clone()

    def _write(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        import deepspeed.utils as utils

        value = value.to(self.device)
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


def _sums(output: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """float64 [3 + 2 tasks]: loss sum, tokens, images, loss by task, tokens by task of one micro-batch."""
    tokens = int((batch["segment_ids"] > 0).sum()) if "segment_ids" in batch else batch["labels"].numel()
    images = batch["pixel_values"].shape[0] if "pixel_values" in batch else 0
    head = torch.stack(
        [output["loss_sum"].detach().double(), *output["loss_sum"].new_tensor([tokens, images]).double()]
    )
    return torch.cat([head, output["task_loss"].double(), output["task_tokens"].double()])
