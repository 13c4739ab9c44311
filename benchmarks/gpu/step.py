"""Measures a full-size training step, two baselines and the effect of each setting, next to predicted step times.

    python -m benchmarks.gpu.step [--tiny]

The baselines are padded batches with eager attention, all logits and fp16 autocast (as in the published training loop),
and padded batches with the library's SDPA in bf16 (typical code with transformers and PEFT).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.gpu.common import (
    Setting,
    lengths_like_stage3,
    make_model,
    median_seconds,
    optimizer_of,
    pack_of,
    padded_loss,
    padded_of,
    setting_of,
    work_of,
)
from minigptv2.engine.frozen import drop_frozen_inputs
from minigptv2.model.kernels import choose_kernels, compile_blocks
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.planner.hardware import KERNEL_SHARE
from minigptv2.train.limit import measure_rates

Prepare = Callable[[MiniGPTv2], object]


def sides(setting: Setting) -> Iterator[tuple[str, dict[str, Any], Prepare, bool, str]]:
    """A side: name, config changes, changes to the model, whether packed, kind of baseline."""
    depth = setting.sizes.language_model.depth

    def nothing(model: MiniGPTv2) -> None:
        return None

    yield "ours", {}, drop_frozen_inputs, True, ""
    yield "baseline: padded, eager, fp16 autocast", {"kernels": "torch"}, _eager, False, "autocast"
    yield "baseline: padded, SDPA, bf16", {"kernels": "torch"}, _library_sdpa, False, ""
    yield "ours, packed_sdpa attention", {"attention": "packed_sdpa"}, drop_frozen_inputs, True, ""
    yield "ours, torch's norms and SwiGLU", {"kernels": "torch"}, drop_frozen_inputs, True, ""
    yield "ours, all layers recomputed", {}, lambda model: (drop_frozen_inputs(model), model.recompute(depth)), True, ""
    yield "ours, torch's frozen linears", {}, nothing, True, ""
    if not setting.tiny:
        yield "ours, vision compiled", {}, lambda m: (drop_frozen_inputs(m), compile_blocks(m.vision_encoder)), True, ""


def _eager(model: MiniGPTv2) -> None:
    model.language_model.set_attn_implementation("eager")
    model.vision_encoder.set_attn_implementation("eager")


def _library_sdpa(model: MiniGPTv2) -> None:
    model.language_model.set_attn_implementation("sdpa")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure all sides at all pack sizes and report."""
    setting = setting_of(argv, __doc__ or "")
    rates = measure_rates(setting.device, setting.dtype, decode=int, workers=1)
    rows: list[dict[str, Any]] = []
    for tokens in (150,) if setting.tiny else (4096, 16384):
        lengths = _lengths(tokens, setting)
        for name, changes, prepare, packed, kind in sides(setting):
            rows.append(_measure(setting, rates.matmul, lengths, name, changes, prepare, packed, kind))
            print(rows[-1], flush=True)
            gc.collect()
    first = [row for row in rows if row["side"] == "ours"]
    for row in rows:
        own = next(one for one in first if one["tokens"] == row["tokens"])
        if "samples/s" in row:
            row["ours is"] = own["samples/s"] / row["samples/s"] if "samples/s" in own else 0.0
    setting.report(
        "step",
        "A training step on one GPU",
        rows,
        [
            f"limit: {rates.matmul / 1e12:.0f} TFLOP/s measured; kernels {choose_kernels('auto', setting.device)}",
            "goals: >= 55 samples/s, >= 1.6 x the first baseline, >= 1.3 x the second,"
            " <= 74 GiB at 16k, <= 32 GiB at 4k",
        ],
    )
    return rows


def _lengths(tokens: int, setting: Setting) -> list[int]:
    found: list[int] = []
    for length in lengths_like_stage3(1000, setting, seed=0):
        if sum(found) + length > tokens:
            break
        found.append(length)
    return found


def _measure(
    setting: Setting,
    rate: float,
    lengths: list[int],
    name: str,
    changes: dict[str, Any],
    prepare: Prepare,
    packed: bool,
    kind: str,
) -> dict[str, Any]:
    row: dict[str, Any] = {"side": name, "tokens": sum(lengths), "samples": len(lengths)}
    try:
        model = make_model(setting, setting.config(**changes))
        prepare(model)
        optimizer = optimizer_of(model)
        packs = [pack_of(lengths, setting, seed=100 * n) for n in range(setting.warm + setting.repeats)]
        cuda = setting.device.type == "cuda"
        autocast = torch.autocast("cuda", torch.float16) if kind == "autocast" and cuda else nullcontext()

        def step(number: int) -> None:
            if packed:
                output = model(**packs[number])
                loss = output["loss_sum"] / output["num_tokens"]
            else:
                with autocast:
                    loss = padded_loss(model, padded_of(packs[number]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        times = median_seconds(step, setting)
    except torch.OutOfMemoryError:
        return row | {"samples/s": 0.0, "note": "out of memory"}
    work = work_of(packs[0])
    recomputed = setting.sizes.language_model.depth if "recomputed" in name else 0
    flops = setting.costs.flops(work, recomputed_layers=recomputed).total
    predicted = flops / (rate * KERNEL_SHARE)
    return (
        row
        | times
        | {
            "samples/s": len(lengths) / times["median s"],
            "% of the limit": 100 * flops / rate / times["median s"],
            "predicted s": predicted,
            "error %": 100 * (predicted / times["median s"] - 1),
        }
    )


if __name__ == "__main__":
    main()
