"""Compares the memory that `minigptv2 plan` predicts with allocated memory at several pack sizes, ZeRO-3 and ZeRO-2.

python -m benchmarks.gpu.memory [--tiny]
"""

from __future__ import annotations

import gc

import torch

from benchmarks.engine import small
from benchmarks.gpu.common import pack_of, plan_trainer, work_of
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from minigptv2.planner.zero_plan import ZeroPlan

SIDES = ("zero3.json", "zero2.json")


def main(argv: list[str] | None = None) -> Rows:
    """Measure and report, each plan in a process group of one rank."""
    return measure_sides("benchmarks.gpu.memory", argv, __doc__ or "", SIDES, measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return a row of the plan for each pack size."""
    device = small.start()
    document, trainer = plan_trainer(side, setting, device)
    plan = ZeroPlan.of(side, document)
    state = sum(plan.state_bytes(setting.costs.parts, 1).values())
    per_image = setting.sizes.vision_encoder.tokens_per_image
    rows: Rows = []
    for tokens in (200,) if setting.tiny else (4096, 8192, 16384):
        length = per_image + 44
        pack = pack_of([length] * max(1, tokens // length), setting, seed=0)
        trainer.train_step([pack])  # the first step makes the moments and the buffers
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train_step([pack])
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        predicted = state + setting.costs.activation_bytes(work_of(pack), element=plan.element)
        rows.append(
            {
                "side": side,
                "tokens": pack.inputs["input_ids"].shape[1],
                "predicted GiB": predicted / 2**30,
                "measured GiB": peak / 2**30,
                "error %": 100 * (predicted / peak - 1) if peak else 0.0,
            }
        )
    return rows


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    setting.report("memory", "Predicted against allocated memory", rows, ["goal: within 10 %"])


if __name__ == "__main__":
    main()
