"""Predicts the step time of ZeRO plans on a cluster, and chooses plan, micro-batch size and recomputed layers.

Uses only the config, the DeepSpeed JSONs and the table of GPUs. Imports no torch and reads no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.model.costs import ModelCosts, Work
from minigptv2.planner.hardware import GIB, RESERVED_GIB, Hardware
from minigptv2.planner.zero_plan import Traffic, ZeroPlan

HOST_RATE = 25e9
"""Bytes/s from pinned host memory to one GPU over PCIe 4."""


@dataclass(frozen=True)
class Samples:
    """The contents of a mean sample of the mixture, and the limits on samples and packs, in tokens and images."""

    tokens: float = 300.0
    images: float = 1.0
    supervised: float = 30.0
    max_pack_tokens: int = 16384
    longest: int = 1280
    """Tokens of the longest sample: `data.max_tokens` text tokens and an image."""

    def work(self, count: float) -> Work:
        """The work of `count` mean samples."""
        one = Work(self.tokens, self.images, self.images, self.tokens**2, self.supervised)
        return one.scaled(count)

    def fullest_pack(self, micro_batch: int) -> Work:
        """The largest pack of a micro-batch of this many mean samples: 15 % above the mean, at most `max_pack_tokens`.

        The packs of a step are balanced, so they differ by less. A single sample may be as long as `longest`.
        """
        tokens = min(float(self.max_pack_tokens), max(float(self.longest), 1.15 * micro_batch * self.tokens))
        return self.work(tokens / self.tokens)


@dataclass(frozen=True)
class Times:
    """Seconds of a step by resource. `compute` assumes the rate of large matrix products, `kernels` that of layers."""

    compute: float
    kernels: float
    wire: float
    data: float
    host: float

    @property
    def limit(self) -> float:
        """Seconds with perfect kernels and perfect overlap."""
        return max(self.compute, self.wire, self.data, self.host)

    @property
    def predicted(self) -> float:
        """Seconds with real kernels, where gathers overlap with compute and data is loaded ahead."""
        return max(self.kernels, self.wire, self.data, self.host)

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        by_name = {"compute": self.kernels, "wire": self.wire, "data": self.data, "host memory": self.host}
        return max(by_name, key=lambda name: by_name[name])


@dataclass(frozen=True)
class Option:
    """A plan with one micro-batch size and number of recomputed layers: bytes held and moved, and step time."""

    plan: ZeroPlan
    micro_batch: int
    micro_batches: int
    recomputed_layers: int
    memory: dict[str, float]
    traffic: Traffic
    times: Times

    @property
    def memory_total(self) -> float:
        """Peak bytes per rank."""
        return sum(self.memory.values())


def option(
    costs: ModelCosts,
    plan: ZeroPlan,
    hardware: Hardware,
    samples: Samples,
    *,
    global_batch: int,
    micro_batch: int,
    recomputed_layers: int = 0,
    fused: bool = False,
) -> Option:
    """The memory, traffic and time of `plan` with packs of `micro_batch` mean samples."""
    micro_batches = max(1, global_batch // (micro_batch * hardware.gpus))
    memory = plan.state_bytes(costs.parts, hardware.gpus)
    memory["activations"] = costs.activation_bytes(
        samples.fullest_pack(micro_batch), element=plan.element, recomputed_layers=recomputed_layers, fused=fused
    )
    memory["reserved"] = RESERVED_GIB * GIB
    traffic = plan.traffic(
        costs.parts, ranks=hardware.gpus, gpus_per_node=hardware.gpus_per_node, micro_batches=micro_batches
    )
    per_rank = samples.work(global_batch / hardware.gpus)
    flops = costs.flops(per_rank, recomputed_layers=recomputed_layers).total
    return Option(
        plan,
        micro_batch,
        micro_batches,
        recomputed_layers,
        memory,
        traffic,
        times(flops, traffic, per_rank.images, hardware),
    )


def times(flops: float, traffic: Traffic, images: float, hardware: Hardware) -> Times:
    """Seconds of a step of `flops` and `images` on one rank."""
    others = (hardware.gpus - 1) / hardware.gpus
    wire = traffic.total * others / hardware.gather_rate
    inside = traffic.inside_node * (hardware.gpus_per_node - 1) / max(1, hardware.gpus_per_node) / hardware.link
    return Times(
        compute=flops / hardware.matmul,
        kernels=flops / (hardware.matmul * hardware.kernel_share),
        wire=wire + inside,
        data=images / (hardware.decode_rate * hardware.cores_per_gpu),
        host=traffic.from_host / HOST_RATE,
    )


def options(
    costs: ModelCosts,
    plans: list[ZeroPlan],
    hardware: Hardware,
    samples: Samples,
    *,
    global_batch: int,
    fused: bool = False,
) -> list[Option]:
    """The best option of each plan: the fastest that fits, or the smallest if none fits."""
    found = []
    for plan in plans:
        tried = [
            option(
                costs,
                plan,
                hardware,
                samples,
                global_batch=global_batch,
                micro_batch=size,
                fused=fused,
                recomputed_layers=layers,
            )
            for size in _micro_batches(global_batch, hardware.gpus, samples)
            for layers in _layers(costs.language.depth)
        ]
        fitting = [one for one in tried if one.memory_total <= hardware.memory]
        found.append(
            min(fitting, key=lambda one: (round(one.times.predicted, 4), one.recomputed_layers, one.micro_batches))
            if fitting
            else min(tried, key=lambda one: one.memory_total)
        )
    return found


def recommended(found: list[Option], hardware: Hardware) -> Option | None:
    """The fastest option that fits, or None. Among options within 2 % of it, the one that moves the fewest bytes.

    A plan that rounds the frozen weights to 8 bits changes the model. It is recommended only if no exact plan fits.
    """
    fitting = [one for one in found if one.memory_total <= hardware.memory]
    fitting = [one for one in fitting if not one.plan.quantized] or fitting
    if not fitting:
        return None
    fastest = min(one.times.predicted for one in fitting)
    close = [one for one in fitting if one.times.predicted <= 1.02 * fastest]
    return min(close, key=lambda one: (one.traffic.total, one.traffic.inside_node, one.memory_total))


def layers_to_recompute(
    costs: ModelCosts, plan: ZeroPlan, *, ranks: int, memory: float, pack: Work, fused: bool = False
) -> int:
    """The fewest layers to recompute so that `pack` fits `memory` bytes, or all layers if it never fits."""
    state = sum(plan.state_bytes(costs.parts, ranks).values()) + RESERVED_GIB * GIB
    for layers in range(costs.language.depth + 1):
        kept = costs.activation_bytes(pack, element=plan.element, recomputed_layers=layers, fused=fused)
        if state + kept <= memory:
            return layers
    return costs.language.depth


def _micro_batches(global_batch: int, ranks: int, samples: Samples) -> list[int]:
    """Samples per pack: the divisors of a rank's share of the step, limited by `max_pack_tokens`."""
    share = max(1, global_batch // ranks)
    cap = max(1, int(samples.max_pack_tokens / samples.tokens))
    return [size for size in range(1, share + 1) if share % size == 0 and size <= cap] or [1]


def _layers(depth: int) -> list[int]:
    return sorted({0, depth // 4, depth // 2, 3 * depth // 4, depth})
