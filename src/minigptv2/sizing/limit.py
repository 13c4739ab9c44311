"""How far a running step is from the limit: rates measured at the start, exact work counted by the packer.

limit = max(FLOPs / rate of a large matrix product, bytes / rate of a large gather, images / rate of decoding): what
perfect kernels and perfect overlap would take on this machine. A step is at limit / time of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from minigptv2.model.costs import ModelCosts, Work
from minigptv2.sizing.zero import ZeroPlan


@dataclass(frozen=True)
class Rates:
    """What this machine was measured to do: FLOP/s of a rank, bytes/s into a rank, images/s of a rank's loaders."""

    matmul: float
    gather: float
    decode: float

    def __str__(self) -> str:
        gather = f", gathers {self.gather / 1e9:.2f} GB/s" if self.gather else ""
        return f"matrix products {self.matmul / 1e12:.2f} TFLOP/s{gather}, images {self.decode:.0f}/s to decode"


@dataclass(frozen=True)
class Share:
    """Where a step stands: seconds that it took and would take at least, what binds, what to try next."""

    step_s: float
    compute_s: float
    wire_s: float
    data_s: float
    lever: str

    @property
    def limit_s(self) -> float:
        """The longest of what must happen."""
        return max(self.compute_s, self.wire_s, self.data_s)

    @property
    def share(self) -> float:
        """Limit / measured."""
        return self.limit_s / self.step_s

    @property
    def bound(self) -> str:
        """Which of the three is the limit."""
        by_name = {"compute": self.compute_s, "wire": self.wire_s, "data": self.data_s}
        return max(by_name, key=lambda name: by_name[name])

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % of the limit, bound by {self.bound}, next lever: {self.lever}"

    def values(self) -> dict[str, float]:
        """For the metrics: the numbers."""
        return {
            "share": self.share, "limit_s": self.limit_s, "compute_s": self.compute_s, "wire_s": self.wire_s,
            "data_s": self.data_s,
        }  # fmt: skip


class LimitReport:
    """The limit of a run's steps on this machine."""

    def __init__(self, costs: ModelCosts, plan: ZeroPlan, rates: Rates, *, ranks: int, gpus_per_node: int,
                 recomputed_layers: int) -> None:  # fmt: skip
        self.costs, self.plan, self.rates = costs, plan, rates
        self.ranks, self.gpus_per_node = ranks, gpus_per_node
        self.recomputed_layers = recomputed_layers

    def share(self, work: Work, *, steps: int, micro_batches: int, seconds: float, data_wait_s: float) -> Share:
        """`work` of all ranks in `steps` steps of `micro_batches` each in all, that took `seconds`."""
        mine = work.scaled(1 / (self.ranks * steps))
        flops = self.costs.flops(mine, recomputed_layers=self.recomputed_layers)
        traffic = self.plan.traffic(
            self.costs.parts, ranks=self.ranks, gpus_per_node=self.gpus_per_node,
            micro_batches=max(1, round(micro_batches / steps)),
        )  # fmt: skip
        moved = (traffic.total + traffic.inside_node) * (self.ranks - 1) / self.ranks
        compute = flops.total / self.rates.matmul
        wire = moved / self.rates.gather if self.rates.gather else 0.0
        data = mine.images / self.rates.decode if self.rates.decode else 0.0
        step = seconds / steps
        lever = self._lever(compute, wire, data, flops.recomputed / flops.total, data_wait_s / seconds, step)
        return Share(step, compute, wire, data, lever)

    def _lever(self, compute: float, wire: float, data: float, recomputed: float, waiting: float, step: float) -> str:
        """What would gain most, with what it could gain at best."""
        frozen_moves = any(not part.trained for part in self.costs.parts) and self.plan.stage == 3
        levers = {
            "more data.num_workers or cores: the step waits for data": waiting * step,
            "fewer model.recompute_layers": recomputed * compute if self.recomputed_layers else 0.0,
            "larger train.micro_batch_size, or a plan that gathers less (minigptv2 plan)": (
                max(0.0, wire - compute) if frozen_moves else 0.0
            ),
            "a faster network: what is trained is exchanged": 0.0 if frozen_moves else max(0.0, wire - compute),
        }
        rest = max(0.0, step - max(compute, wire, data) - waiting * step)
        levers["kernels and overlap: larger packs, flash-attn, liger-kernel"] = 0.5 * rest
        best = max(levers, key=lambda name: levers[name])
        return f"{best} (at most {100 * levers[best] / step:.0f} %)"


def measure_rates(device: torch.device, dtype: torch.dtype, *, decode: Callable[[], object], workers: int) -> Rates:
    """Measure this machine for a fraction of a second (a collective: call it on all ranks)."""
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
    """Seconds of the fastest of a few runs, after one to warm up."""
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
