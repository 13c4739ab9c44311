"""Defines a two-layer net that follows the engine's contract, its batches and a trainer, for tests of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.batch import IGNORE, MicroBatch
from minigptv2.engine.checkpoint import Identity

TASKS, SAMPLES, WIDTH, CLASSES = 2, 4, 8, 5
IDENTITY = Identity("tokenizer", "plan", 1, None, {})


class TwoLayers(nn.Module):
    """Returns the cross-entropy sum of `x` float32 [n, WIDTH] for `labels` int64 [1, n]. `spoil` scales the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 16)
        self.second = nn.Linear(16, CLASSES)
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, labels: Tensor, spoil: Tensor) -> dict[str, Tensor]:
        logits = self.second(torch.tanh(self.first(self.frozen(x.to(self.second.weight.dtype))))).float()
        loss = nn.functional.cross_entropy(logits, labels[0], reduction="sum", ignore_index=IGNORE)
        zeros = torch.zeros(TASKS, dtype=torch.float64)
        return {"loss_sum": Spoil.apply(loss, spoil), "task_loss": zeros, "task_tokens": zeros}


class Spoil(torch.autograd.Function):
    """Multiplies the loss by spoil[0] and its gradient by spoil[1]."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, spoil: Tensor) -> Tensor:
        ctx.backward_factor = float(spoil[1])
        return loss * spoil[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.backward_factor, None


def batch(step: int, number: int, spoil: tuple[float, float] = (1.0, 1.0), labelled: bool = True) -> MicroBatch:
    """Return micro-batch `number` of a step. It is the same in every process."""
    draw = torch.Generator().manual_seed(1000 * step + number)
    x = torch.randn(SAMPLES, WIDTH, generator=draw)
    labels = torch.randint(0, CLASSES, (1, SAMPLES), generator=draw)
    inputs = {"x": x, "labels": labels if labelled else torch.full_like(labels, IGNORE), "spoil": torch.tensor(spoil)}
    return MicroBatch(inputs, SAMPLES if labelled else 0, {"tokens": SAMPLES, "images": 0})  # type: ignore[arg-type]


def make_trainer(
    folder: Path,
    zero: dict[str, Any],
    *,
    micro_batches: int = 4,
    learning_rate: float = 1e-2,
    extra: dict[str, Any] | None = None,
    **train: Any,
) -> Any:
    """Start the process group and return a trainer of the net on this rank. All ranks have the same initial weights."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.config import TrainConfig, resolve_deepspeed_config
    from minigptv2.engine.trainer import Trainer
    from minigptv2.engine.zero import assign, shape_of, zero_backend

    torch.set_num_threads(1)
    device = distributed.choose_device()
    distributed.start_process_group(device, 5)
    file = folder / f"ds-{distributed.rank()}.json"
    file.write_text(json.dumps({"zero_optimization": zero, **(extra or {})}))
    settings = {"steps": 1000, "warmup_steps": 3, "gradient_clipping": 0.5} | train
    settings |= {"global_batch_size": micro_batches, "micro_batch_size": 1, "learning_rate": learning_rate}
    config = TrainConfig(deepspeed=str(file), **settings)
    resolved = resolve_deepspeed_config(config, distributed.world_size())
    with zero_backend(resolved).construction():
        net = TwoLayers()
    net.frozen.requires_grad_(False)
    parameters = dict(net.named_parameters())
    for number, parameter in enumerate(parameters.values()):
        value = torch.randn(shape_of(parameter), generator=torch.Generator().manual_seed(number)) / 3
        assign(parameter, lambda value=value: value)
    return Trainer(net, parameters, config, resolved, device=device, seed=0)


def mine(batches: list[MicroBatch]) -> list[MicroBatch]:
    """Return this rank's micro-batches of a step."""
    from minigptv2.cluster import distributed

    return batches[distributed.rank() :: distributed.world_size()]


def snapshot(trainer: Any) -> dict[str, Tensor]:
    """Return weights and moments by name, on the main rank."""
    from minigptv2.engine.checkpoint import MOMENTS

    tensors = {f"weights/{name}": value for name, value in trainer.trained_weights().items()}
    for key in MOMENTS:
        tensors |= {f"{key}/{name}": value for name, value in trainer.moments(key).items()}
    return tensors


ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}
