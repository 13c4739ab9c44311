"""Measures steps of stage 3 at full size on one GPU under ZeRO-3 and ZeRO-2, with several micro-batch sizes.

    python -m benchmarks.gpu.plans [--tiny]

A step has 24 samples. It is run by the trainer, with new packs each time. The idle share shows whether Python keeps up.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.engine import small
from benchmarks.engine.ranks import REPOSITORY
from benchmarks.gpu.common import lengths_like_stage3, median_seconds, pack_of
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from benchmarks.gpu.trace import trace_step
from minigptv2.batch import MicroBatch

SAMPLES = 24
SIDES = ("zero3.json, 24", "zero2.json, 24", "zero3.json, 12", "zero2.json, 12", "zero3.json, 3", "zero2.json, 3")
"""DeepSpeed config and samples per micro-batch."""


def main(argv: list[str] | None = None) -> Rows:
    """Measure and report."""
    return measure_sides("benchmarks.gpu.plans", argv, __doc__ or "", SIDES, measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return a row of the plan with this micro-batch size."""
    name, samples = side.split(", ")
    device = small.start()
    document = json.loads((REPOSITORY / "deepspeed_configs" / name).read_text())
    if setting.tiny and samples != "12":
        return [{"side": side, "note": "not rehearsed"}]
    total, micro = (4, 2) if setting.tiny else (SAMPLES, int(samples))
    trainer = small.make_trainer(
        document,
        setting.config(),
        device,
        sizes=setting.sizes,
        global_batch=total,
        micro_batch=micro,
        random_on_device=True,
    )
    steps = [_step(total, micro, setting, seed) for seed in range(setting.warm + setting.repeats + 1)]
    times = median_seconds(lambda number: trainer.train_step(steps[number]), setting)
    with tempfile.TemporaryDirectory() as folder:
        trace = trace_step(lambda: trainer.train_step(steps[-1]), device, Path(folder) / "trace.json")
    tokens = sum(pack.counts["tokens"] for step in steps[:-1] for pack in step) / (len(steps) - 1)
    rates = {"samples/s": total / times["median s"], "tokens/s": tokens / times["median s"]}
    return [{"side": side, "micro-batches": total // micro, **times, **rates, "device idle %": 100 * trace.idle_share}]


def _step(total: int, micro: int, setting: Setting, seed: int) -> list[MicroBatch]:
    lengths = lengths_like_stage3(total, setting, seed)
    starts = range(0, total, micro)
    return [pack_of(lengths[start : start + micro], setting, 1000 * seed + start) for start in starts]


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    notes = ["the profiled step is slower than the measured ones: its idle share is an upper bound"]
    setting.report("plans", f"Steps of {SAMPLES} samples of stage 3 on one GPU, by plan and micro-batch", rows, notes)


if __name__ == "__main__":
    main()
