"""Repeats a skipped step on one machine, without the shards, to find its cause (`minigptv2 replay`).

Builds the model of the run's config, loads the saved weights, and runs each micro-batch of each rank separately. Prints
its loss, its gradient norm, the first module whose output is not finite, and the names of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from minigptv2.batch import IGNORE, Batch
from minigptv2.data.collate import micro_batch_of
from minigptv2.engine.bundle import CONFIG_FILE, Bundle, KeptMicroBatch, load_bundle
from minigptv2.engine.optimizer import dropout_seed
from minigptv2.errors import ExitCode
from minigptv2.model.bases import fill_weights, open_bases
from minigptv2.model.build import build_model
from minigptv2.model.export import assign_plain, load_info, tokenizer_of
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import named_canonical
from minigptv2.run_config import load_run_config


@dataclass(frozen=True)
class Replayed:
    """The result of one micro-batch: mean loss by its loss weights, gradient norm, first module with NaN or inf."""

    micro_batch: KeptMicroBatch
    loss: float
    gradient_norm: float
    nonfinite_module: str | None

    @property
    def bad(self) -> bool:
        """Whether the loss or the gradient norm is not finite."""
        return not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm))


def replay(folder: Path, *, device: str = "cpu") -> int:
    """Repeat a saved step and print the result. Returns exit code 5 if a micro-batch is not finite again, otherwise 0.

    Raises `CheckpointError` if the bundle is damaged.
    """
    bundle = load_bundle(folder)
    about = bundle.about
    print(f"step {about['step']} on {about['world_size']} rank(s) was skipped: {about['reason']}")
    model = _build(bundle, torch.device(device)).to(device).train()
    found = [_run(model, micro, about, device) for micro in bundle.micro_batches]
    for one in found:
        micro = one.micro_batch
        where = f"  <-- first not finite in {one.nonfinite_module}" if one.nonfinite_module else ""
        values = f"loss {one.loss:.6g}, gradient norm {one.gradient_norm:.6g}"
        print(f"rank {micro.rank} micro-batch {micro.number}: {values}{where}")
        for name in micro.samples if one.bad else ():
            print(f"    {name}")
    packs = [micro_batch_of(cast(Batch, one.micro_batch.inputs)) for one in found]
    weight = sum(pack.weight for pack in packs)
    total = sum(one.loss * pack.weight for one, pack in zip(found, packs, strict=True)) / weight if weight else 0.0
    supervised = sum(int((pack.inputs["labels"] != IGNORE).sum()) for pack in packs)
    weighted = f" of weight {weight:.6g}" if any("loss_weights" in pack.inputs for pack in packs) else ""
    print(
        f"step total: loss {total:.6g} over {supervised} supervised tokens{weighted}. "
        f"Loss during the run: {about['loss']:.6g}"
    )
    return int(ExitCode.STEP) if any(one.bad for one in found) else 0


def _build(bundle: Bundle, device: torch.device) -> MiniGPTv2:
    config = load_run_config(bundle.folder / CONFIG_FILE).value
    model = build_model(config.model, tokenizer_of(config.model).vocab_size, device=device)
    parent = load_info(config.init_from) if config.init_from else None
    inherited = (str(parent.folder), parent.tensors) if parent else None
    fill_weights(model, open_bases(config.model), inherited, assign_plain, seed=config.seed)
    kept = named_canonical(model)
    for name, tensor in bundle.weights.items():
        kept[name].data.copy_(tensor)
    model.restore_float32_buffers()
    return model


def _run(model: nn.Module, micro: KeptMicroBatch, about: dict[str, Any], device: str) -> Replayed:
    """Run forward and backward of one micro-batch, with the dropout seed of its rank."""
    torch.manual_seed(dropout_seed(about["seed"], about["step"], micro.rank))
    model.zero_grad()
    nonfinite_modules: list[str] = []
    hooks = [
        module.register_forward_hook(_watcher(name, nonfinite_modules))
        for name, module in model.named_modules()
        if name
    ]
    output = model(**{key: value.to(device) for key, value in micro.inputs.items()})
    for hook in hooks:
        hook.remove()
    output["loss_sum"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    scale = micro_batch_of(cast(Batch, micro.inputs)).weight or 1.0
    norm = float(torch.nn.utils.get_total_norm(gradients)) / scale if gradients else 0.0
    return Replayed(
        micro, float(output["loss_sum"].detach()) / scale, norm, nonfinite_modules[0] if nonfinite_modules else None
    )


def _watcher(name: str, nonfinite_modules: list[str]) -> Callable[[nn.Module, object, object], None]:
    def check(module: nn.Module, inputs: object, output: object) -> None:
        if not nonfinite_modules and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            nonfinite_modules.append(name)

    return check
