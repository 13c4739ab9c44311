"""Profiles one training step under ZeRO-3 and ZeRO-2: a picture, the share of time the GPU is idle, the top kernels.

    python -m benchmarks.gpu.profile [--tiny]

Pictures and traces are written to `runs/profile`.
"""

from __future__ import annotations

from benchmarks.engine import small
from benchmarks.engine.ranks import REPOSITORY
from benchmarks.gpu.common import lengths_within, pack_of, plan_trainer
from benchmarks.gpu.sides import Rows, Setting, measure_sides
from benchmarks.gpu.trace import trace_step

SIDES = ("zero3.json", "zero2.json")
FOLDER = REPOSITORY / "runs" / "profile"
WARM, KERNELS = 3, 8


def main(argv: list[str] | None = None) -> Rows:
    """Profile a step of each plan and report."""
    return measure_sides("benchmarks.gpu.profile", argv, __doc__ or "", SIDES, measure, finish)


def measure(side: str, setting: Setting) -> Rows:
    """Return rows of the plan: one of the whole step, and one of each of its top kernels."""
    device = small.start()
    _, trainer = plan_trainer(side, setting, device)
    lengths = lengths_within(150 if setting.tiny else 8192, setting)
    packs = [pack_of(lengths, setting, seed=100 * number) for number in range(WARM + 1)]
    for pack in packs[:WARM]:
        trainer.train_step([pack])
    name = f"{side.removesuffix('.json')}{'_tiny' if setting.tiny else ''}"
    trace = trace_step(lambda: trainer.train_step([packs[WARM]]), device, FOLDER / f"{name}.json")
    trace.draw(FOLDER / f"{name}.png", f"One step of {len(lengths)} samples under {side} on {device.type}")
    whole = {"side": side, "what": "step", "ms": trace.length, "device idle %": 100 * trace.idle_share}
    kernels = [
        {"side": side, "what": kernel[:80], "% of the step": 100 * share, "calls": calls}
        for kernel, share, calls in trace.top_kernels(KERNELS)
    ]
    return [whole, *kernels]


def finish(setting: Setting, rows: Rows) -> None:
    """Report."""
    setting.report("profile", "One training step, profiled", rows, [f"pictures and traces: {FOLDER}"])


if __name__ == "__main__":
    main()
