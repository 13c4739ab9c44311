"""Compares FLOPs with torch's counter, and predicted with measured step times on a CPU, for 12 configurations.

    python -m benchmarks.engine.limit

Time is predicted as in `minigptv2 plan`: FLOPs / (rate of a large matrix product x share of that rate that whole layers
reach). The rate is measured next to each configuration. The share is measured on a thirteenth configuration (the median
of one measurement next to each of the twelve). One process, one thread, fp32, the median of several steps.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine import small
from benchmarks.results import report
from minigptv2.batch import Batch
from minigptv2.model.backbones import LanguageModelSpec, Sizes, VisionEncoderSpec
from minigptv2.model.config import ModelConfig
from minigptv2.model.costs import ModelCosts, Work
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.train.limit import measure_rates

VISION = VisionEncoderSpec(image_size=112, patch_size=14, width=256, depth=4, heads=4, mlp_width=1024)
LANGUAGE = LanguageModelSpec(width=512, depth=6, heads=8, mlp_width=1376, vocab_size=4000)
SIZES = Sizes(VISION, LANGUAGE)
SUPERVISED = 12


@dataclass(frozen=True)
class Case:
    """A configuration: samples per pack, tokens per sample, images or not, recomputed layers, trained parts."""

    samples: int
    length: int
    images: bool = True
    recompute: int = 0
    trainable: tuple[str, ...] = ("projector", "lora")

    @property
    def config(self) -> ModelConfig:
        """The config of its model."""
        return small.model_config(r=8 if "lora" in self.trainable else 0, trainable=self.trainable)

    @property
    def work(self) -> Work:
        """Its exact counts. A pack without images still encodes a blank image."""
        images = self.samples if self.images else 1
        tokens = self.samples * self.length
        return Work(tokens, images, images, self.samples * self.length**2, self.samples * SUPERVISED)


ALL = ("vision_encoder", "projector", "language_model")
CALIBRATION = Case(6, 128)
CASES = [
    Case(2, 128),
    Case(4, 128),
    Case(8, 128),
    Case(2, 300),
    Case(4, 64),
    Case(8, 64),
    Case(6, 128, recompute=3),
    Case(4, 200, recompute=6),
    Case(4, 128, images=False),
    Case(8, 100, images=False),
    Case(4, 128, trainable=ALL),
    Case(2, 300, trainable=ALL),
]


def step(model: MiniGPTv2, batch: Batch) -> None:
    """Run forward and backward."""
    model.zero_grad(set_to_none=True)
    model(**batch)["loss_sum"].backward()


def prepared(case: Case) -> tuple[MiniGPTv2, Batch]:
    """Return the model and the pack of a case."""
    model = small.plain_model(case.config, sizes=SIZES)
    model.recompute(case.recompute)
    return model, small.pack(case.samples, case.length, images=case.images, supervised=SUPERVISED, sizes=SIZES).inputs


def counted(case: Case) -> tuple[float, float]:
    """Return FLOPs by torch's counter and by our formulas, without attention (torch counts its full square)."""
    model, batch = prepared(case)
    with FlopCounterMode(display=False) as counter:
        step(model, batch)
    by_operator = counter.get_flop_counts()["Global"].items()
    theirs = sum(count for name, count in by_operator if "attention" not in str(name))
    flops = ModelCosts(case.config, SIZES).flops(case.work, recomputed_layers=case.recompute)
    attention = flops.attention + case.recompute * 2 * LANGUAGE.width * case.work.sum_of_squares
    vision = 4 * (VISION.num_patches + 1) ** 2 * VISION.width * VISION.depth * case.work.images
    attention += vision * (3 if "vision_encoder" in case.trainable else 1)
    return float(theirs), flops.total - attention


def timed(case: Case, repeats: int) -> tuple[float, float, list[float]]:
    """Return the median seconds of a step, the matrix rate measured around it, and all times."""
    model, batch = prepared(case)
    step(model, batch)
    rates, times = [], []
    for _ in range(repeats):
        rates.append(measure_rates(torch.device("cpu"), torch.float32, decode=int, workers=1).matmul)
        began = time.perf_counter()
        step(model, batch)
        times.append(time.perf_counter() - began)
    return statistics.median(times), statistics.median(rates), times


def main(repeats: int = 7, cases: list[Case] | None = None) -> dict[str, float]:
    """Measure and report. Returns the median and worst errors."""
    torch.set_num_threads(1)
    cases = CASES if cases is None else cases
    rows: list[dict[str, Any]] = []
    errors, shares, measurements = [], [], []
    for case in cases:
        seconds, rate, _ = timed(
            CALIBRATION, 3
        )  # measured next to each case, because the load of a shared machine changes
        shares.append(ModelCosts(CALIBRATION.config, SIZES).flops(CALIBRATION.work).total / rate / seconds)
        measurements.append(timed(case, repeats))
    share = statistics.median(shares)
    for case, (measured, rate, times) in zip(cases, measurements, strict=True):
        theirs, ours = counted(case)
        flops = ModelCosts(case.config, SIZES).flops(case.work, recomputed_layers=case.recompute).total
        predicted = flops / (rate * share)
        errors.append(abs(predicted / measured - 1))
        rows.append(
            {
                "samples x tokens": f"{case.samples} x {case.length}",
                "images": case.images,
                "recomputed": case.recompute,
                "trained": "all" if case.trainable == ALL else "LoRA",
                "FLOPs / torch's": ours / theirs,
                "measured s": measured,
                "fastest": min(times),
                "slowest": max(times),
                "predicted s": predicted,
                "error %": 100 * (predicted / measured - 1),
                "% of the limit": 100 * flops / rate / measured,
            }
        )
    flop_error = max(abs(row["FLOPs / torch's"] - 1) for row in rows)
    figures = {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "worst_flop_error": flop_error,
        "share": share,
    }
    report(
        "engine_limit",
        "Predicted and measured step times on a CPU",
        rows,
        packages=["torch", "transformers", "peft"],
        notes=[
            f"layers reach {100 * share:.0f} % of a large product's rate (from 6 x 128 tokens, not in the table)",
            f"time: median error {100 * figures['median_error']:.1f} % (goal 8), worst "
            f"{100 * figures['worst_error']:.1f} % (goal 20)",
            f"FLOPs: largest difference from torch's counter {100 * flop_error:.4f} % (goal 0.1)",
        ],
        more={"figures": figures},
    )
    return figures


if __name__ == "__main__":
    main()
