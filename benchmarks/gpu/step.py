"""Measures a full-size training step, two baselines and the effect of each setting, next to predicted step times.

    python -m benchmarks.gpu.step [--tiny]

The first baseline is the published training loop: padded batches, eager attention, all logits, frozen weights in fp16,
trained ones in float32 under autocast with a gradient scaler. The second is typical code with `transformers` and PEFT:
padded batches, SDPA, bf16, the loss of the library. Both use our modules for images, so that the weights are equal.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.common import (
    lengths_within,
    make_model,
    median_seconds,
    optimizer_of,
    pack_of,
    padded_loss,
    padded_of,
    work_of,
)
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from minigptv2.batch import MicroBatch
from minigptv2.engine.frozen import drop_frozen_inputs
from minigptv2.model.kernels import choose_kernels, compile_blocks
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.planner.hardware import KERNEL_SHARE
from minigptv2.train.limit import measure_rates

OURS = "ours"


@dataclass(frozen=True)
class Side:
    """What a side changes: the config, the model after it is built, packs or padded batches, fp16 under autocast."""

    changes: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[MiniGPTv2], object] = drop_frozen_inputs
    padded: bool = False
    half: bool = False
    recomputed: bool = False
    only_cuda: bool = False


def _eager(model: MiniGPTv2) -> None:
    model.language_model.set_attn_implementation("eager")
    model.vision_encoder.set_attn_implementation("eager")


def _library_sdpa(model: MiniGPTv2) -> None:
    model.language_model.set_attn_implementation("sdpa")


def _recomputed(model: MiniGPTv2) -> None:
    drop_frozen_inputs(model)
    model.recompute(len(model.language_model.model.layers))


def _compiled(model: MiniGPTv2) -> None:
    drop_frozen_inputs(model)
    compile_blocks(model.vision_encoder)


SIDES = {
    OURS: Side(),
    "published: padded, eager, fp16 autocast": Side({"kernels": "torch"}, _eager, padded=True, half=True),
    "transformers + PEFT: padded, SDPA, bf16": Side({"kernels": "torch"}, _library_sdpa, padded=True),
    "ours, packed_sdpa": Side({"attention": "packed_sdpa"}),
    "ours, packed_flex": Side({"attention": "packed_flex"}, only_cuda=True),
    "ours, torch's norms and SwiGLU": Side({"kernels": "torch"}),
    "ours, all layers recomputed": Side(prepare=_recomputed, recomputed=True),
    "ours, torch's frozen linears": Side(prepare=lambda model: None),
    "ours, vision compiled": Side(prepare=_compiled, only_cuda=True),
}


def main(argv: list[str] | None = None) -> Rows:
    """Measure all sides at all pack sizes and report."""
    return measure_sides("benchmarks.gpu.step", argv, __doc__ or "", list(SIDES), measure, finish)


def measure(name: str, setting: Setting) -> Rows:
    """Return a row of the side for each pack size."""
    side = SIDES[name]
    if side.only_cuda and setting.device.type != "cuda":
        return [{"side": name, "note": "needs CUDA"}]
    matmul = measure_rates(setting.device, setting.dtype, decode=int, workers=1).matmul
    rows: Rows = []
    for tokens in (150,) if setting.tiny else (4096, 16384):
        lengths = lengths_within(tokens, setting)
        packs = [pack_of(lengths, setting, seed=100 * n) for n in range(setting.warm + setting.repeats)]
        row = {"side": name, "pack": tokens, "tokens": sum(lengths), "samples": len(lengths), "TFLOP/s": matmul / 1e12}
        try:
            row |= median_seconds(_step_of(side, setting, packs), setting)
        except torch.OutOfMemoryError:
            rows.append(row | {"note": "out of memory"})
        else:
            rows.append(row | _rates_of(side, setting, packs[0], row["median s"], matmul))
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
    return rows


def model_of(side: Side, setting: Setting) -> MiniGPTv2:
    """Return the model of a side. In half precision its frozen weights are fp16 and its trained ones float32."""
    model = make_model(setting, setting.config(**side.changes), dtype=torch.float16 if side.half else None)
    side.prepare(model)
    for parameter in model.parameters():
        if side.half and parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _step_of(side: Side, setting: Setting, packs: list[MicroBatch]) -> Callable[[int], None]:
    """Return a function that trains one step on the pack of a number, which is on the device already."""
    model = model_of(side, setting)
    optimizer, device = optimizer_of(model), setting.device
    scaler = torch.amp.GradScaler(device.type, enabled=side.half)
    inputs = [padded_of(pack, device) if side.padded else pack.arguments_on(device) for pack in packs]

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.float16) if side.half else nullcontext():
            if side.padded:
                loss = padded_loss(model, inputs[number])
            else:
                output = model(**inputs[number])
                loss = output["loss_sum"] / output["num_tokens"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _rates_of(side: Side, setting: Setting, pack: MicroBatch, seconds: float, matmul: float) -> dict[str, float]:
    """Return rates, and the time that the planner predicts."""
    work = work_of(pack)
    recomputed = setting.sizes.language_model.depth if side.recomputed else 0
    flops = setting.costs.flops(work, recomputed_layers=recomputed).total
    predicted = flops / (matmul * KERNEL_SHARE)
    return {
        "samples/s": work.images / seconds,
        "tokens/s": work.tokens / seconds,
        "% of the limit": 100 * flops / matmul / seconds,
        "predicted s": predicted,
        "error %": 100 * (predicted / seconds - 1),
    }


def finish(setting: Setting, rows: Rows) -> None:
    """Compare each side with ours and report."""
    ours = {row["pack"]: row["tokens/s"] for row in rows if row["side"] == OURS and "tokens/s" in row}
    for row in rows:
        if "tokens/s" in row and row["pack"] in ours:
            row["ours is"] = ours[row["pack"]] / row["tokens/s"]
    notes = [
        f"kernels {choose_kernels('auto', setting.device)}; each side in a process of its own",
        "goals: >= 18,400 tokens/s in packs of 4,096 (60 % of the matrix rate), >= 21,400 in packs of 16,384 (70 %)",
        "TRL's SFT is not measured: it trains models that `transformers` has a processor for, and not this one",
    ]
    setting.report("step", "A training step on one GPU", rows, notes)


if __name__ == "__main__":
    main()
