"""Counts network bytes of a micro-step in torch.distributed, for DeepSpeed's defaults and our plans.

    python -m benchmarks.engine.wire

Runs 2, 4 and 8 gloo processes with a small model that has the real ratio of frozen to trained weights. DeepSpeed's
thresholds (persistence, live parameters, reuse distance) are absolute numbers of elements for large models. They are
scaled by the ratio of the model sizes, so the small model is sharded as the real one. The bytes of a rank are those
that it receives in gathers and sends in reductions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine.ranks import REPOSITORY, on_ranks
from benchmarks.results import report

REAL_ELEMENTS = 7_782_000_000
PLANS = ("zero3 (DeepSpeed's defaults)", "zero3.json", "zero3_hpz.json", "zero2.json")


def document(plan: str, ranks: int, elements: int) -> dict[str, Any]:
    """Return the JSON of a plan, in fp32 on the CPU, with its thresholds scaled to a model of `elements`."""
    scale = elements / REAL_ELEMENTS
    if plan.startswith("zero3 ("):
        zero: dict[str, Any] = {
            "stage": 3,
            "stage3_param_persistence_threshold": 1e5,
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_prefetch_bucket_size": 5e7,
        }
    else:
        zero = json.loads((REPOSITORY / "deepspeed_configs" / plan).read_text())["zero_optimization"]
    for key in (
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
        "reduce_bucket_size",
        "allgather_bucket_size",
    ):
        if key in zero:
            zero[key] = max(1, int(zero[key] * scale))
    if "reduce_bucket_size" in zero:
        zero["reduce_bucket_size"] = max(zero["reduce_bucket_size"], 100_000)  # at least one gradient
    if zero.get("zero_hpz_partition_size", 1) > 1:
        zero["zero_hpz_partition_size"] = max(2, ranks // 2)
    return {"zero_optimization": zero | {"overlap_comm": False}}


class Counter:
    """Counts the bytes that this rank sends or receives, separately for groups of all ranks and smaller groups."""

    def __init__(self) -> None:
        self.everywhere = 0.0
        self.inside = 0.0

    def install(self) -> None:
        """Wrap the collectives of torch.distributed. Call it before DeepSpeed is imported, which keeps references."""
        import torch.distributed as dist

        def wrap(name: str, size: Callable[..., float]) -> None:
            original = getattr(dist, name, None)
            if original is None:
                return

            def counted(*args: Any, **kwargs: Any) -> Any:
                group = kwargs.get("group")
                ranks = dist.get_world_size(group)
                if ranks > 1:
                    moved = size(*args, **kwargs) * (ranks - 1) / ranks
                    if ranks == dist.get_world_size():
                        self.everywhere += moved
                    else:
                        self.inside += moved
                return original(*args, **kwargs)

            setattr(dist, name, counted)

        def first(*args: Any, **kwargs: Any) -> float:
            tensor = args[0] if args else next(iter(kwargs.values()))
            return float(tensor.numel() * tensor.element_size())

        def second(*args: Any, **kwargs: Any) -> float:
            tensor = args[1] if len(args) > 1 else kwargs.get("input", kwargs.get("input_tensor"))
            return float(tensor.numel() * tensor.element_size())

        def first_list(*args: Any, **kwargs: Any) -> float:
            return float(sum(tensor.numel() * tensor.element_size() for tensor in args[0]))

        for name in ("all_gather_into_tensor", "_all_gather_base", "all_gather_single"):
            wrap(name, first)
        for name in ("reduce_scatter_tensor", "_reduce_scatter_base", "reduce_scatter_single"):
            wrap(name, second)
        wrap("all_gather", first_list)
        wrap("all_reduce", lambda *args, **kwargs: 2 * first(*args, **kwargs))
        wrap("broadcast", first)
        wrap("reduce", first)


def measure(plan: str, micro_batches: int, recompute: int = 0) -> dict[str, Any]:
    """Return the bytes and the loss of the third step on this rank, and the bytes that the plan predicts."""
    counter = Counter()
    counter.install()
    import torch.distributed as dist

    from benchmarks.engine import small
    from minigptv2.planner.zero_plan import ZeroPlan

    device = small.start()
    config = small.model_config()
    parts = small.costs(config).parts
    ranks = dist.get_world_size()
    text = document(plan, ranks, sum(part.elements for part in parts))
    trainer = small.make_trainer(text, config, device, global_batch=ranks * micro_batches, recompute=recompute)
    loss = 0.0
    for step in range(3):
        batches = [
            small.pack(2, 40, seed=1000 * step + 8 * dist.get_rank() + number) for number in range(micro_batches)
        ]
        before = counter.everywhere, counter.inside
        loss = trainer.train_step(batches).loss
    moved = counter.everywhere - before[0], counter.inside - before[1]
    expected = ZeroPlan.of(plan, text).traffic(
        parts, ranks=ranks, gpus_per_node=ranks // 2 or 1, micro_batches=micro_batches
    )
    others = (ranks - 1) / ranks
    return {"everywhere": moved[0], "inside": moved[1], "loss": loss, "expected": expected.total * others}


def main(worlds: tuple[int, ...] = (2, 4, 8), plans: tuple[str, ...] = PLANS) -> list[dict[str, Any]]:
    """Measure all plans at all world sizes and report."""
    rows: list[dict[str, Any]] = []
    for ranks in worlds:
        base: dict[str, Any] | None = None
        for plan in plans:
            if "hpz" in plan and ranks < 4:
                continue
            results = on_ranks("benchmarks.engine.wire:measure", ranks, plan=plan, micro_batches=1)
            mean = {key: sum(result[key] for result in results) / ranks for key in results[0]}
            base = base or mean
            rows.append(
                {
                    "ranks": ranks,
                    "plan": plan,
                    "MB between nodes": mean["everywhere"] / 1e6,
                    "MB inside a node": mean["inside"] / 1e6,
                    "fewer than default": base["everywhere"] / mean["everywhere"],
                    "counted / predicted": mean["everywhere"] / mean["expected"],
                    "loss": mean["loss"],
                    "loss difference": abs(mean["loss"] - base["loss"]),
                }
            )
    report(
        "engine_wire",
        "Network bytes per rank and step of one micro-batch",
        rows,
        packages=["torch", "deepspeed", "transformers", "peft"],
        notes=[
            "goal: >= 100 x fewer with the plan for cards that hold the frozen weights (zero2.json); with hpZ none of "
            "the frozen bytes between nodes (a node here: half the ranks)",
        ],
    )
    return rows


if __name__ == "__main__":
    Path("benchmarks/results").mkdir(exist_ok=True)
    main()
