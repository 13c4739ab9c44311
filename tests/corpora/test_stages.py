"""From original files to a training step: each corpus built, verified, mixed by its stage's recipe, packed, trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.sources import CORPORA
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepBatches, StepDataset
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.model.backbones import vision_spec
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import PromptEncoder
from minigptv2.shards.verify import verify_corpus
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.corpora.miniatures import MINIATURES
from tests.corpora.miniatures.files import Miniature
from tests.model.tiny import ALL_PARTS, tiny_config

STAGES = ("stage1_pretrain", "stage2_multitask", "stage3_instruct")
STEP = 64
"""Samples in a step: enough for every corpus of a stage but the rarest."""


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> MiniGPTv2:
    made = build_model(tiny_config(ALL_PARTS), tokenizer.vocab_size)

    def assign(parameter, value):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            parameter.copy_(value())

    fill_weights(made, [], None, assign, seed=0)
    return made


def built(tmp_path: Path, miniature: Miniature, folder: Path) -> None:
    """The miniature as shards that `verify` finds no fault with, every record parsed and picture decoded."""
    root = tmp_path / "raw" / miniature.id
    miniature.make(root)
    build(CORPORA[miniature.corpus], root, miniature.split, folder, samples_per_shard=2)
    assert verify_corpus(folder, decode=True) == []


def one_step(recipe: Recipe, shards: Path, tokenizer: Tokenizer, model: MiniGPTv2) -> tuple[Counter[str], StepBatches]:
    """Train one step of the recipe; returns which corpora were in it, and its batches."""
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
    step = dataset[0]
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


@pytest.mark.parametrize("layout", [0, -1], ids=["first-layout", "last-layout"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_recipe_trains_on_its_corpora(
    tmp_path: Path, tokenizer: Tokenizer, model: MiniGPTv2, stage: str, layout: int
) -> None:
    recipe = load_recipe(REPOSITORY / "data_recipes" / f"{stage}.yaml")
    for corpus in recipe.corpora:
        miniature = [one for one in MINIATURES if one.corpus == corpus and "val" not in one.split][layout]
        built(tmp_path, miniature, tmp_path / "shards" / corpus)
    drawn, step = one_step(recipe, tmp_path / "shards", tokenizer, model)
    assert step.dropped == [] and sum(drawn.values()) == STEP
    assert len(drawn) > 0.8 * len(recipe.corpora)
    trained = {list(TASKS)[int(task)] for batch in step.batches for task in batch.inputs["task_ids"].unique()}
    assert trained >= {share.task for name, share in recipe.corpora.items() if drawn[name]}


@pytest.mark.parametrize(
    "miniature", [m for m in MINIATURES if not CORPORA[m.corpus].stages], ids=lambda miniature: miniature.id
)
def test_a_corpus_of_evaluation_trains_too(
    tmp_path: Path, tokenizer: Tokenizer, model: MiniGPTv2, miniature: Miniature
) -> None:
    built(tmp_path, miniature, tmp_path / "shards" / miniature.corpus)
    recipe = Recipe(corpora={miniature.corpus: CorpusShare(ratio=1, task=CORPORA[miniature.corpus].tasks[0])})
    drawn, step = one_step(recipe, tmp_path / "shards", tokenizer, model)
    assert drawn == Counter({miniature.corpus: STEP}) and step.dropped == []
