"""Shared code of the GPU benchmarks: sizes (real or tiny), models on the device, packs, padded batches, timing."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.engine import small
from benchmarks.engine.ranks import REPOSITORY
from benchmarks.gpu.sides import Setting
from minigptv2.batch import IGNORE, Batch, MicroBatch
from minigptv2.data.collate import micro_batch_of
from minigptv2.engine.trainer import Trainer
from minigptv2.model.build import build_model
from minigptv2.model.config import ModelConfig
from minigptv2.model.costs import Work
from minigptv2.model.minigptv2 import MiniGPTv2


def plan_trainer(side: str, setting: Setting, device: torch.device) -> tuple[dict[str, Any], Trainer]:
    """Return the DeepSpeed JSON named `side`, and a trainer of one micro-batch a step under it."""
    document = json.loads((REPOSITORY / "deepspeed_configs" / side).read_text())
    trainer = small.make_trainer(
        document, setting.config(), device, sizes=setting.sizes, global_batch=1, random_on_device=True
    )
    return document, trainer


def make_model(setting: Setting, config: ModelConfig, *, dtype: torch.dtype | None = None) -> MiniGPTv2:
    """Build the model with random weights on the device, in `dtype` or the setting's."""
    dtype = dtype or setting.dtype
    model = build_model(
        config,
        small.pieces_of(setting.sizes),
        small.built_on(setting.device, dtype),
        sizes=setting.sizes,
        device=setting.device,
        dtype=dtype,
    )
    model.to(setting.device, dtype)
    small.fill_on_device(model)
    model.restore_float32_buffers()
    return model.train()


def lengths_like_stage3(count: int, setting: Setting, seed: int) -> list[int]:
    """Return tokens per sample: mostly 276 to 330, and up to 700 for some conversations (scaled when tiny)."""
    rng = np.random.default_rng(seed)
    base = setting.sizes.vision_encoder.tokens_per_image
    texts = np.where(rng.random(count) < 0.85, rng.integers(20, 60, count), rng.integers(100, 440, count))
    return [int(base + max(10, text // (8 if setting.tiny else 1))) for text in texts]


def lengths_within(tokens: int, setting: Setting) -> list[int]:
    """Return the lengths of as many samples of stage 3 as fit into a pack of `tokens`."""
    found: list[int] = []
    for length in lengths_like_stage3(1000, setting, seed=0):
        if sum(found) + length > tokens:
            break
        found.append(length)
    return found


def pack_of(lengths: list[int], setting: Setting, seed: int, *, supervised: int | None = None) -> MicroBatch:
    """Return a pack of samples of these lengths, each with an image, on the host."""
    parts = [
        small.pack(
            1, length, seed=seed + number, supervised=supervised or max(4, (length - 5) // 10), sizes=setting.sizes
        ).inputs
        for number, length in enumerate(lengths)
    ]
    tensors = cast("list[dict[str, Tensor]]", parts)
    joined = {key: torch.cat([part[key] for part in tensors], dim=int(key != "pixel_values")) for key in tensors[0]}
    joined["segment_ids"] = torch.cat([part["segment_ids"] * (n + 1) for n, part in enumerate(parts)], dim=1)
    return micro_batch_of(cast(Batch, joined))


def padded_of(pack: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """Return the samples of a pack as a padded batch with a mask on `device`."""
    inputs = pack.inputs
    lengths = torch.bincount(inputs["segment_ids"][0])[1:].tolist()
    rows, width = len(lengths), max(lengths)
    ids = inputs["input_ids"].new_zeros(rows, width)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    parts = zip(inputs["input_ids"][0].split(lengths), inputs["labels"][0].split(lengths), strict=True)
    for row, (some, wanted) in enumerate(parts):
        ids[row, : len(some)], labels[row, : len(some)], mask[row, : len(some)] = some, wanted, 1
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": inputs["pixel_values"]}
    return {key: value.to(device) for key, value in batch.items()}


def padded_loss(model: MiniGPTv2, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a padded batch as `transformers` computes it, with all logits."""
    embeddings = model.embed(batch["input_ids"], batch["pixel_values"])
    loss: Tensor = model.language_model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], labels=batch["labels"], use_cache=False
    ).loss
    return loss


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW for the trained parameters."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.05)


def work_of(pack: MicroBatch) -> Work:
    """Return the exact counts of a pack."""
    lengths = torch.bincount(pack.inputs["segment_ids"][0])[1:].double()
    images = pack.inputs["pixel_values"].shape[0]
    supervised = int((pack.inputs["labels"] != IGNORE).sum())
    return Work(float(lengths.sum()), images, images, float((lengths * lengths).sum()), supervised)


def median_seconds(run: Callable[[int], object], setting: Setting) -> dict[str, float]:
    """Return minimum, median and maximum seconds of `run(number)`, and the peak GiB. A number selects new inputs."""
    for number in range(setting.warm):
        run(number)
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = [_seconds(run, setting.warm + number, cuda) for number in range(setting.repeats)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {"min s": min(times), "median s": statistics.median(times), "max s": max(times), "peak GiB": peak}


def _seconds(run: Callable[[int], object], number: int, cuda: bool) -> float:
    """Return the seconds of one call, on a GPU between two events on its stream."""
    if not cuda:
        began = time.perf_counter()
        run(number)
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run(number)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
