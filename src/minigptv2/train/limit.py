"""Compares the time of a step with the limit of this machine, and chooses how many layers are recomputed.

The limit is max(FLOPs / rate of a large matrix product, bytes / rate of a large gather, images / rate of decoding), the
time with perfect kernels and perfect overlap. The rates are measured at the start, and the work is counted exactly.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from minigptv2.cluster import distributed
from minigptv2.errors import ConfigError
from minigptv2.model.costs import ModelCosts, Work
from minigptv2.planner.plan_table import costs_of
from minigptv2.planner.step_time import Samples, layers_to_recompute
from minigptv2.planner.zero_plan import ZeroPlan
from minigptv2.run_config import RunConfig
from minigptv2.shards.image_files import open_image, square


@dataclass(frozen=True)
class Rates:
    """Measured rates of this machine: FLOP/s of a rank, bytes/s into a rank, images/s of a rank's loader processes."""

    matmul: float
    gather: float
    decode: float

    def __str__(self) -> str:
        gather = f", gathers {self.gather / 1e9:.2f} GB/s" if self.gather else ""
        return f"matrix products {self.matmul / 1e12:.2f} TFLOP/s{gather}, image decoding {self.decode:.0f}/s"


@dataclass(frozen=True)
class Share:
    """A step and its limit: seconds it took, seconds each resource needs at least, and what to change next."""

    step_s: float
    compute_s: float
    wire_s: float
    data_s: float
    lever: str

    @property
    def limit_s(self) -> float:
        """Seconds of the slowest resource."""
        return max(self.compute_s, self.wire_s, self.data_s)

    @property
    def share(self) -> float:
        """Limit divided by measured time."""
        return self.limit_s / self.step_s

    @property
    def bound(self) -> str:
        """The slowest resource: compute, wire or data."""
        by_name = {"compute": self.compute_s, "wire": self.wire_s, "data": self.data_s}
        return max(by_name, key=lambda name: by_name[name])

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % of the limit, bound by {self.bound}, next lever: {self.lever}"

    def values(self) -> dict[str, float]:
        """The numbers by name, for the metrics."""
        return {
            "share": self.share,
            "limit_s": self.limit_s,
            "compute_s": self.compute_s,
            "wire_s": self.wire_s,
            "data_s": self.data_s,
        }


class LimitReport:
    """Computes the limit of a run's steps on this machine."""

    def __init__(
        self, costs: ModelCosts, plan: ZeroPlan, rates: Rates, *, ranks: int, gpus_per_node: int, recomputed_layers: int
    ) -> None:
        self.costs, self.plan, self.rates = costs, plan, rates
        self.ranks, self.gpus_per_node = ranks, gpus_per_node
        self.recomputed_layers = recomputed_layers

    def share(self, work: Work, *, steps: int, micro_batches: int, seconds: float, data_wait_s: float) -> Share:
        """Compare `steps` steps that took `seconds` with their limit.

        `work` is that of all ranks, `micro_batches` the number of one rank in all these steps.
        """
        mine = work.scaled(1 / (self.ranks * steps))
        flops = self.costs.flops(mine, recomputed_layers=self.recomputed_layers)
        traffic = self.plan.traffic(
            self.costs.parts,
            ranks=self.ranks,
            gpus_per_node=self.gpus_per_node,
            micro_batches=max(1, round(micro_batches / steps)),
        )
        moved = (traffic.total + traffic.inside_node) * (self.ranks - 1) / self.ranks
        compute = flops.total / self.rates.matmul
        wire = moved / self.rates.gather if self.rates.gather else 0.0
        data = mine.images / self.rates.decode if self.rates.decode else 0.0
        step = seconds / steps
        lever = self._lever(
            step,
            compute=compute,
            wire=wire,
            data=data,
            recomputed=flops.recomputed / flops.total,
            waiting=data_wait_s / seconds,
        )
        return Share(step, compute, wire, data, lever)

    def _lever(
        self, step: float, *, compute: float, wire: float, data: float, recomputed: float, waiting: float
    ) -> str:
        """The change that could gain most, with the upper bound of its gain.

        `step`, `compute`, `wire` and `data` are seconds. `recomputed` is a share of the arithmetic, and `waiting`
        (for data) one of the step.
        """
        frozen_moves = any(not part.trained for part in self.costs.parts) and self.plan.shards_parameters
        levers = {
            "more data.num_workers or cores: the step waits for data": waiting * step,
            "fewer model.recompute_layers": recomputed * compute if self.recomputed_layers else 0.0,
            "larger train.micro_batch_size, or a ZeRO plan that gathers less (minigptv2 plan)": (
                max(0.0, wire - compute) if frozen_moves else 0.0
            ),
            "a faster network: trained weights are exchanged": 0.0 if frozen_moves else max(0.0, wire - compute),
        }
        rest = max(0.0, step - max(compute, wire, data) - waiting * step)
        levers["kernels and overlap: larger packs, flash-attn, liger-kernel"] = 0.5 * rest
        best = max(levers, key=lambda name: levers[name])
        return f"{best} (at most {100 * levers[best] / step:.0f} %)"


def measure_rates(device: torch.device, dtype: torch.dtype, *, decode: Callable[[], object], workers: int) -> Rates:
    """Measure the rates of this machine, in a fraction of a second. A collective."""
    size = 8192 if device.type == "cuda" else 768
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = _fastest(lambda: left @ right, device, repeats=4)
    gather = 0.0
    if dist.is_initialized() and dist.get_world_size() > 1:
        ranks = dist.get_world_size()
        part = torch.zeros((256 if device.type == "cuda" else 4) * 2**20 // ranks, dtype=torch.uint8, device=device)
        whole = torch.empty(part.numel() * ranks, dtype=torch.uint8, device=device)
        took = _fastest(lambda: dist.all_gather_into_tensor(whole, part), device, repeats=3)
        gather = whole.numel() * (ranks - 1) / ranks / took
    decode()
    began = time.perf_counter()
    count = 4
    for _ in range(count):
        decode()
    per_core = count / (time.perf_counter() - began)
    return Rates(2 * size**3 / seconds, gather, per_core * max(1, workers))


def _fastest(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - began)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_ranks(config: RunConfig, deepspeed_config: dict[str, Any]) -> None:
    """Raise `ConfigError` if DeepSpeed cannot run the config on this number of ranks."""
    plan = ZeroPlan.of(config.train.deepspeed, deepspeed_config)
    if why := plan.refusal(costs_of(config).smallest_parameters, distributed.world_size()):
        raise ConfigError(why)


def recomputed_layers(config: RunConfig, deepspeed_config: dict[str, Any], device: torch.device) -> int:
    """`model.recompute_layers`, or the fewest with which the largest pack fits every GPU. 0 on CPUs. A collective."""
    costs = costs_of(config)
    if config.model.recompute_layers is not None:
        return min(config.model.recompute_layers, costs.language.depth)
    if device.type != "cuda":
        return 0
    memory = torch.cuda.get_device_properties(device).total_memory
    samples = Samples(max_pack_tokens=config.data.max_pack_tokens)
    pack = samples.work(config.data.max_pack_tokens / samples.tokens)
    plan = ZeroPlan.of(config.train.deepspeed, deepspeed_config)
    mine = layers_to_recompute(costs, plan, ranks=distributed.world_size(), memory=memory, pack=pack)
    # The most that any rank needs: ranks that recompute different layers gather a different number of times and hang.
    return sum(distributed.any_over_ranks([mine > layer for layer in range(costs.language.depth)]))


def limit_report(
    config: RunConfig, deepspeed_config: dict[str, Any], device: torch.device, dtype: torch.dtype, layers: int
) -> LimitReport:
    """Measure this machine and return the limit of the run's steps on it. A collective."""
    costs = costs_of(config)
    rates = measure_rates(device, dtype, decode=_decode_one(costs.vision.image_size), workers=config.data.num_workers)
    return LimitReport(
        costs,
        ZeroPlan.of(Path(config.train.deepspeed).name, deepspeed_config),
        rates,
        ranks=distributed.world_size(),
        gpus_per_node=int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())),
        recomputed_layers=layers,
    )


def _decode_one(side: int) -> Callable[[], object]:
    """A function that decodes a 640 x 480 JPEG to the model's square image, as the loader does."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    return lambda: square(open_image(data, "a test image"), side)
