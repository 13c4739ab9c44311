"""Realised shares of the objective with the ratios of stage 3 and answers whose lengths differ as real ones do."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.data.config import Recipe
from minigptv2.data.objective import Composition
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Turn
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.data.test_recipes import PUBLISHED_GRADIENT

LENGTHS = {
    "conversation": (180, 0.6),
    "refer": (12, 0.1),
    "detection": (30, 0.8),
    "identify": (4, 0.5),
    "vqa": (1, 0.3),
    "grounding": (60, 0.4),
    "caption": (10, 0.3),
    "language": (40, 1.1),
}
"""Median words of an answer and sigma of their logarithm, by task."""
SAMPLES, RECORDS = 3000, 300


def write(folder: Path, name: str, task: str, seed: int) -> None:
    """A corpus whose records have answers of random lengths. Those of questions hold one to six separate turns."""
    rng = np.random.default_rng([9, seed])
    median, sigma = LENGTHS[task]
    buffer = io.BytesIO()
    Image.new("RGB", (20, 15)).save(buffer, "JPEG")
    samples = []
    for number in range(RECORDS):
        count = int(rng.integers(1, 7)) if task in ("vqa", "refer", "identify") else 1
        words = [max(1, round(median * float(np.exp(sigma * rng.standard_normal())))) for _ in range(count)]
        with_image = task != "language"
        kind = "conversation" if with_image else "language"
        turns = tuple(Turn(kind, f"say {n}", ("a " * length,)) for n, length in enumerate(words))
        record = Record(turns, 20 if with_image else None, 15 if with_image else None, separate=count > 1)
        samples.append(Sample(f"{number}", record, buffer.getvalue() if with_image else None))
    write_corpus(samples, folder / name, name, samples_per_shard=100)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All corpora of stage 3. Their turns are conversations, because lengths are all that counts here."""
    folder = tmp_path_factory.mktemp("lengths")
    for seed, (name, line) in enumerate(load_recipe(REPOSITORY / "data_recipes/stage3_instruct.yaml").corpora.items()):
        write(folder, name, line.task, seed)
    return folder


def realised(recipe: Recipe, tasks: dict[str, str], shards: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Percent of the objective by task over the first samples of the plan."""
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400)
    plan = DataPlan(recipe, shards, seed=2, encoder=encoder)
    samples = plan.samples(0, SAMPLES)
    examples = [plan.encode(sample, encoder) for sample in samples]
    found = Composition.of(examples, [sample.corpus for sample in samples], len(plan.names))
    shares: Counter[str] = Counter()
    for name, share in found.shares_of_loss(plan.names).items():
        shares[tasks[name]] += 100 * share  # type: ignore[assignment]
    return dict(shares)


@pytest.mark.parametrize("more", [{}, {"share_images": 3}, {"sample_by": "image"}], ids=["turn", "shared", "image"])
def test_stage_3_has_the_published_shares_whatever_the_lengths(
    shards: Path, tokenizer: Tokenizer, more: dict[str, object]
) -> None:
    recipe = load_recipe(REPOSITORY / "data_recipes/stage3_instruct.yaml")
    tasks = {name: line.task for name, line in recipe.corpora.items()}
    lines = {name: replace(line, task="mixed", **more) for name, line in recipe.corpora.items()}  # type: ignore[arg-type]
    published = realised(replace(recipe, corpora=lines), tasks, shards, tokenizer)
    assert published == pytest.approx(PUBLISHED_GRADIENT, abs=1.0)
    by_token = realised(replace(recipe, objective="token", corpora=lines), tasks, shards, tokenizer)
    assert by_token["conversation"] > 2 * PUBLISHED_GRADIENT["conversation"]
    assert by_token["vqa"] < 0.25 * PUBLISHED_GRADIENT["vqa"]
