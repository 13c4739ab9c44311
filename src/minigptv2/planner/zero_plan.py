"""Computes from a DeepSpeed config the model state that each rank holds and the bytes that a step moves.

Reads the JSON that training uses, so a user's own file is evaluated like the shipped ones. Traffic is what a rank
receives in gathers and sends in reductions, before the factor (n - 1) / n. `benchmarks/engine/wire.py` counts the same
around torch.distributed. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigptv2.engine.config import ZeroVariant, zero_variant
from minigptv2.model.costs import Part

MASTER_AND_MOMENTS = 12
"""Bytes of the optimizer per trained parameter: fp32 weight and two fp32 moments."""
QUANTIZED_ELEMENTS = 8
PERSISTENCE_DEFAULT, LIVE_DEFAULT, BUCKET_DEFAULT = 1e5, 1e9, 5e7
"""Defaults of DeepSpeed 0.19.8."""


@dataclass(frozen=True)
class Traffic:
    """Bytes per optimizer step and rank. `frozen` and `trained` cross the slowest link, `inside_node` does not."""

    frozen: float
    trained: float
    inside_node: float
    from_host: float

    @property
    def total(self) -> float:
        """Bytes that cross the slowest link."""
        return self.frozen + self.trained


@dataclass(frozen=True)
class ZeroPlan:
    """The settings of a DeepSpeed JSON that determine memory and traffic."""

    name: str
    variant: ZeroVariant
    element: int
    """Bytes of a weight in the forward pass: 2 in bf16 and fp16, 4 in fp32."""
    persistence: float
    max_live: float
    max_reuse: float
    bucket: float
    hpz: int
    quantized: bool
    """Gathers transfer 8-bit weights (ZeRO++). The memory of a rank does not change."""
    reduce_to_all: bool
    """ZeRO-2 reduces gradients to all ranks, which is DeepSpeed's default, instead of to the rank that owns them."""
    offload_frozen: bool
    offload_optimizer: bool

    @classmethod
    def of(cls, name: str, document: dict[str, Any]) -> ZeroPlan:
        """The plan of a DeepSpeed config."""
        zero = document.get("zero_optimization", {})
        half = any(document.get(key, {}).get("enabled") for key in ("bf16", "fp16"))
        return cls(
            name=name,
            variant=zero_variant(document),
            element=2 if half else 4,
            persistence=float(zero.get("stage3_param_persistence_threshold", PERSISTENCE_DEFAULT)),
            max_live=float(zero.get("stage3_max_live_parameters", LIVE_DEFAULT)),
            max_reuse=float(zero.get("stage3_max_reuse_distance", LIVE_DEFAULT)),
            bucket=float(zero.get("stage3_prefetch_bucket_size", BUCKET_DEFAULT)),
            hpz=int(zero.get("zero_hpz_partition_size", 1)),
            quantized=bool(zero.get("zero_quantized_weights", False)),
            reduce_to_all=bool(zero.get("use_multi_rank_bucket_allreduce", True)),
            offload_frozen=zero.get("offload_param", {}).get("device") == "cpu",
            offload_optimizer=zero.get("offload_optimizer", {}).get("device") == "cpu",
        )

    def refusal(self, smallest_parameters: list[int], ranks: int) -> str:
        """Return why DeepSpeed cannot run this plan on so many ranks, or an empty text.

        Gathers in 8 bits need a multiple of `QUANTIZED_ELEMENTS` elements of each parameter on each rank. DeepSpeed
        0.19.8 asserts it in its first gather, after the weights are loaded.
        """

        def fits(count: int) -> bool:
            return all(elements % (count * QUANTIZED_ELEMENTS) == 0 for elements in smallest_parameters)

        counts = [count for count in (ranks, self.hpz) if count > 1]
        if not self.quantized or all(fits(count) for count in counts):
            return ""
        largest = max(count for count in range(1, max(counts) + 1) if count == 1 or fits(count))
        return (
            f"{self.name} gathers weights in 8 bits, which needs a multiple of {QUANTIZED_ELEMENTS} elements of each "
            f"parameter on each rank; with {ranks} ranks some have another number. It runs on {largest} ranks. Set "
            "train.deepspeed=deepspeed_configs/zero3.json or zero3_hpz.json for more"
        )

    @property
    def shards_parameters(self) -> bool:
        """Whether each rank holds a part of every parameter."""
        return self.variant.shards_parameters

    def held_elements(self, part: Part, ranks: int) -> float:
        """Elements of a part whose weights a rank holds between steps."""
        if not self.shards_parameters:
            return float(part.elements)
        return float(part.elements) if self._persists(part) else part.elements / ranks

    def _persists(self, part: Part) -> bool:
        """Whether the matrices of a part are small enough to stay whole on every rank, as those of LoRA usually are."""
        return self.shards_parameters and 0 < part.largest_layer <= self.persistence

    def state_bytes(self, parts: list[Part], ranks: int) -> dict[str, float]:
        """GPU bytes per rank: the weights of each part, gradients, optimizer, gathered layers.

        Host memory that offload uses is not counted.
        """
        held: dict[str, float] = {}
        for part in parts:
            width = float(self.element)
            on_host = self.offload_frozen and self.shards_parameters and not self._persists(part)
            held[part.name] = 0.0 if on_host else width * self.held_elements(part, ranks)
            if self.hpz > 1 and not on_host:  # a second shard inside the node
                held[part.name] += width * part.elements / self.hpz
        trained = float(sum(part.elements for part in parts if part.trained))
        share = trained / ranks
        held["gradients"] = self.element * (share if self.variant.shards_gradients else trained)
        optimized = share if self.variant.shards_optimizer else trained
        held["optimizer"] = 0.0 if self.offload_optimizer else MASTER_AND_MOMENTS * optimized
        if not self.variant.shards_optimizer and self.element == 4:  # fp32 weights are their own masters
            held["optimizer"] -= 4 * trained
        if self.shards_parameters:
            sharded = sum(part.elements for part in parts if not self._persists(part))
            largest = max((part.largest_layer for part in parts), default=0)
            held["gathered layers"] = self.element * min(sharded, max(self.max_live, largest) + self.bucket)
        return held

    def traffic(self, parts: list[Part], *, ranks: int, gpus_per_node: int, micro_batches: int) -> Traffic:
        """Bytes per optimizer step of `micro_batches` micro-batches."""
        frozen = trained = inside = from_host = 0.0
        if ranks == 1 and not self.offload_frozen:
            return Traffic(0.0, 0.0, 0.0, 0.0)
        for part in parts:
            if part.trained:
                trained += self._trained_traffic(part, micro_batches)
            elif self.shards_parameters and not self._persists(part):
                width = 1.0 if self.quantized else float(self.element)
                moved = width * (part.elements + self._gathered_again(part)) * micro_batches
                if self.offload_frozen:
                    from_host += moved / ranks
                if self.hpz > 1 and self.hpz <= gpus_per_node:
                    inside += moved
                else:
                    frozen += moved
        return Traffic(frozen, trained, inside, from_host) if ranks > 1 else Traffic(0.0, 0.0, 0.0, from_host)

    def _trained_traffic(self, part: Part, micro_batches: int) -> float:
        weights = float(self.element * part.elements)
        if not self.variant.shards_gradients:  # a reduce-scatter and a gather: of gradients, or of updated weights
            return 2 * weights
        if not self.shards_parameters:
            return weights * micro_batches * (2 if self.reduce_to_all else 1) + weights
        if self._persists(part):
            return weights * (micro_batches + 1)
        return weights * micro_batches + self.element * micro_batches * (part.elements + self._gathered_again(part))

    def _gathered_again(self, part: Part) -> float:
        """Elements that the backward pass gathers again. Those within the reuse distance are kept."""
        return max(0.0, part.elements - self.max_reuse / 2) if part.uses_backward else 0.0
