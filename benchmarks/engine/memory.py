"""Measures bytes of model state per rank at 1, 2, 4 and 8 ranks, and bytes kept per token for the backward pass.

    python -m benchmarks.engine.memory

State is the distinct storages of all tensors alive after a step, without the batches. Kept bytes are exact, measured by
torch's saved-tensor hooks under ZeRO-3 with DeepSpeed's linear layers and with ours (`engine/zero.py`).
"""

from __future__ import annotations

import gc
from typing import Any

from benchmarks.engine.ranks import on_ranks
from benchmarks.results import report

ZERO3 = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "reduce_bucket_size": 100_000,
    "overlap_comm": False,
}


def state_bytes() -> dict[str, float]:
    """Return this rank's bytes of weights, gradients and optimizer after two steps, and the predicted total of all."""
    import torch
    import torch.distributed as dist

    from benchmarks.engine import small

    device = small.start()
    config = small.model_config()
    ranks = dist.get_world_size()
    document = {"bf16": {"enabled": True}, "zero_optimization": ZERO3}
    trainer = small.make_trainer(document, config, device, global_batch=ranks)
    for step in range(2):
        trainer.train_step([small.pack(2, 40, seed=step)])
    optimizer = trainer.optimizer
    held = {id(p): p.ds_tensor for p in trainer.parameters.values() if hasattr(p, "ds_tensor")}
    whole = [p for p in trainer.parameters.values() if not hasattr(p, "ds_tensor")]
    fp32 = list(optimizer.fp32_partitioned_groups_flat)
    moments = [v for state in optimizer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    weights = sum(t.numel() * t.element_size() for t in [*held.values(), *whole])
    states = sum(t.numel() * t.element_size() for t in [*fp32, *moments] if t.numel() > 1)
    del held, whole, fp32, moments
    gc.collect()
    parts = small.costs(config).parts
    total = sum(2 * part.elements + 12 * part.elements * part.trained for part in parts)
    return {"bytes": float(weights + states), "total": float(total)}


def kept_per_token(ours: bool, dropout: float) -> dict[str, float]:
    """Return the bytes that a ZeRO-3 step keeps per token, measured and predicted (one layer times the depth)."""
    from benchmarks.engine import small
    from benchmarks.engine.saved import kept_bytes
    from minigptv2.engine import zero

    device = small.start()
    config = small.model_config(r=4, dropout=dropout)
    if not ours:
        zero.drop_frozen_inputs = lambda model, gather: 0
    trainer = small.make_trainer({"bf16": {"enabled": True}, "zero_optimization": ZERO3}, config, device)
    batch = small.pack(8, 48, images=False).inputs
    tokens = batch["input_ids"].numel()
    embeddings = trainer.model.embed(batch["input_ids"], batch["pixel_values"]).detach().requires_grad_(True)
    arguments = (embeddings, batch["labels"], batch["position_ids"])
    kept = kept_bytes(trainer.model, lambda: trainer.model.token_losses(*arguments), given=[embeddings])
    return {"per_token": kept / tokens}


def main(worlds: tuple[int, ...] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """Measure and report."""
    from benchmarks.engine import small
    from minigptv2.model.backbones import Sizes, language_spec, vision_spec
    from minigptv2.model.config import ModelConfig
    from minigptv2.model.costs import ModelCosts

    rows: list[dict[str, Any]] = []
    for ranks in worlds:
        results = on_ranks("benchmarks.engine.memory:state_bytes", ranks)
        most, total = max(result["bytes"] for result in results), results[0]["total"]
        rows.append(
            {
                "what": f"state on {ranks} rank(s), MB",
                "ours": most / 1e6,
                "beside": total / ranks / 1e6,
                "ratio": most / (total / ranks),
                "goal": 1.02,
            }
        )
    for dropout in (0.0, 0.05):
        ours, theirs = (
            on_ranks("benchmarks.engine.memory:kept_per_token", 1, ours=side, dropout=dropout)[0]["per_token"]
            for side in (True, False)
        )
        rows.append(
            {
                "what": f"kept bytes a token, LoRA dropout {dropout}",
                "ours": ours,
                "beside": theirs,
                "ratio": ours / theirs,
                "goal": 0.77,
            }
        )
    real = ModelCosts(ModelConfig(), Sizes(vision_spec("eva_vit_g"), language_spec("llama2_7b")))
    for fused in (False, True):
        ours, theirs = (real.kept_bytes_per_token(fused=fused, drop_frozen_inputs=side) for side in (True, False))
        kernels = "fused" if fused else "eager"
        rows.append(
            {
                "what": f"7B by arithmetic, {kernels} kernels, MB a token",
                "ours": 32 * ours / 1e6,
                "beside": 32 * theirs / 1e6,
                "ratio": ours / theirs,
                "goal": 0.77,
            }
        )
    report(
        "engine_memory",
        "Memory per rank and per token (beside: total / ranks, or DeepSpeed's linear layers)",
        rows,
        packages=["torch", "deepspeed", "transformers", "peft"],
        notes=[
            f"state: bf16 weights, fp32 masters and moments of {small.LANGUAGE.depth} layers of "
            f"{small.LANGUAGE.width}, LoRA and projector trained",
            "the last two rows are computed; tests compare the formulas with autograd on small models",
        ],
    )
    return rows


if __name__ == "__main__":
    main()
