"""Trains steps of a recipe in this process, with a tiny model and without the engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from minigptv2.data.config import DataConfig, Recipe
from minigptv2.data.loader import StepBatches, StepDataset
from minigptv2.data.plan import DataPlan
from minigptv2.model.backbones import vision_spec
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import PromptEncoder
from minigptv2.tokenizer import Tokenizer

STEP = 64
"""Samples in a step: enough for every corpus of a stage but the rarest."""


def one_step(
    recipe: Recipe, shards: Path, tokenizer: Tokenizer, model: MiniGPTv2, number: int = 0
) -> tuple[Counter[str], StepBatches]:
    """Train a step of the recipe. Returns which corpora were in it, and its batches."""
    row = vision_spec("tiny_vit")
    config = DataConfig(max_tokens=900, max_pack_tokens=2000, num_workers=0)
    plan = DataPlan(recipe, shards, seed=1)
    encoder = PromptEncoder(tokenizer, tokens_per_image=row.tokens_per_image, max_tokens=config.max_tokens)
    dataset = StepDataset(
        plan,
        encoder,
        config,
        image_size=row.image_size,
        global_batch_size=STEP,
        micro_batch_size=16,
        rank=0,
        world_size=1,
    )
    step = dataset[number]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in step.batches:
        out = model(**batch.inputs)
        assert torch.isfinite(out["loss_sum"]) and out["num_tokens"] > 0
        (out["loss_sum"] / out["num_tokens"]).backward()
    before = model.projector.linear.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.projector.linear.weight) or all(
        b.inputs["pixel_values"].shape[0] == 0 for b in step.batches
    )
    optimizer.zero_grad()
    return Counter(plan.names[sample.corpus] for samples in step.sample_ids for sample in samples), step
