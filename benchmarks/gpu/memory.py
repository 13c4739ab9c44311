"""Compares the memory that `minigptv2 plan` predicts with allocated memory at several pack sizes, ZeRO-3 and ZeRO-2.

python -m benchmarks.gpu.memory [--tiny]
"""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.engine import small
from benchmarks.engine.ranks import REPOSITORY
from benchmarks.gpu.common import pack_of, setting_of, work_of
from minigptv2.data.collate import micro_batch_of
from minigptv2.planner.zero_plan import ZeroPlan


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure and report, in a process group of one rank."""
    setting = setting_of(argv, __doc__ or "")
    device = small.start()
    rows: list[dict[str, Any]] = []
    per_image = setting.sizes.vision_encoder.tokens_per_image
    for name in ("zero3.json", "zero2.json"):
        document = json.loads((REPOSITORY / "deepspeed_configs" / name).read_text())
        trainer = small.make_trainer(document, setting.config(), device, sizes=setting.sizes, global_batch=1)
        plan = ZeroPlan.of(name, document)
        state = sum(plan.state_bytes(setting.costs.parts, 1).values())
        for tokens in (200,) if setting.tiny else (4096, 8192, 16384):
            length = per_image + 44
            pack = pack_of([length] * max(1, tokens // length), setting, seed=0)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer.train_step([micro_batch_of(pack)])
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
            predicted = state + setting.costs.activation_bytes(work_of(pack), element=plan.element)
            rows.append(
                {
                    "plan": name,
                    "tokens": pack["input_ids"].shape[1],
                    "predicted GiB": predicted / 2**30,
                    "measured GiB": peak / 2**30,
                    "error %": 100 * (predicted / peak - 1) if peak else 0.0,
                }
            )
        del trainer
    setting.report("memory", "Predicted against allocated memory", rows, ["goal: within 10 %"])
    return rows


if __name__ == "__main__":
    main()
