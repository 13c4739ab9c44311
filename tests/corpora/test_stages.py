"""From original files to a training step: each corpus built, verified, mixed by its stage's recipe, packed, trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.sources import CORPORA
from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import load_recipe
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.shards.verify import verify_corpus
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.corpora.miniatures import MINIATURES
from tests.corpora.miniatures.files import Miniature
from tests.corpora.training import STEP, one_step

STAGES = ("stage1_pretrain", "stage2_multitask", "stage3_instruct")


def built(tmp_path: Path, miniature: Miniature, folder: Path) -> None:
    """The miniature as shards that `verify` finds no fault with, every record parsed and picture decoded."""
    root = tmp_path / "raw" / miniature.id
    miniature.make(root)
    build(CORPORA[miniature.corpus], root, miniature.split, folder, samples_per_shard=2)
    assert verify_corpus(folder, decode=True) == []


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
