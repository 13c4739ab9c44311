"""Shares of the gradient of the shipped recipes, measured by running each corpus alone through the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minigptv2.batch import Batch, MicroBatch
from minigptv2.data.collate import micro_batch_of
from minigptv2.data.config import DataConfig, Recipe
from minigptv2.data.loader import StepDataset
from minigptv2.data.objective import Composition
from minigptv2.data.plan import DataPlan, SampleId, load_recipe
from minigptv2.model.backbones import vision_spec
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import PromptEncoder
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REPOSITORY
from tests.corpora.miniatures import MINIATURES
from tests.corpora.test_stages import built
from tests.data.test_recipes import PUBLISHED_GRADIENT
from tests.model.tiny import tiny_model

SAMPLES = 960
"""Samples of the plan that are run."""


def shards_of(recipe: Recipe, tmp_path: Path) -> Path:
    """The recipe's corpora in miniature, built from files in their original layout."""
    for corpus in recipe.corpora:
        miniature = next(one for one in MINIATURES if one.corpus == corpus and "val" not in one.split)
        built(tmp_path, miniature, tmp_path / "shards" / corpus)
    return tmp_path / "shards"


def gradient(model: MiniGPTv2, batches: list[MicroBatch], divisor: float) -> Tensor:
    """The gradient of the loss sum of the batches, divided by `divisor`, in one row."""
    model.zero_grad()
    for batch in batches:
        (model(**batch.inputs)["loss_sum"] / divisor).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def without_weights(batches: list[MicroBatch]) -> list[MicroBatch]:
    plain = []
    for batch in batches:
        inputs = dict(batch.inputs)
        inputs.pop("loss_weights", None)
        plain.append(micro_batch_of(Batch(**inputs)))  # type: ignore[typeddict-item]
    return plain


class OneCorpus(DataPlan):
    """A plan that leaves out the samples of all corpora but number `only`."""

    only: int | None = None

    def samples(self, start: int, count: int) -> list[SampleId]:
        return [one for one in super().samples(start, count) if self.only in (None, one.corpus)]


class Measured:
    """The first samples of a recipe in packs, and the samples of each corpus among them in packs of their own."""

    def __init__(self, recipe: Recipe, shards: Path, tokenizer: Tokenizer) -> None:
        spec = vision_spec("tiny_vit")
        config = DataConfig(max_tokens=900, max_pack_tokens=2000, num_workers=0)
        encoder = PromptEncoder(tokenizer, tokens_per_image=spec.tokens_per_image, max_tokens=config.max_tokens)
        self.plan = OneCorpus(recipe, shards, seed=1, encoder=encoder)
        self.dataset = StepDataset(
            self.plan,
            encoder,
            config,
            image_size=spec.image_size,
            global_batch_size=SAMPLES,
            micro_batch_size=SAMPLES,
            rank=0,
            world_size=1,
        )
        self.batches = self._batches(None)
        self.corpora = {name: self._batches(number) for number, name in enumerate(self.plan.names)}

    def _batches(self, only: int | None) -> list[MicroBatch]:
        self.plan.only = only
        step = self.dataset[0]
        assert step.dropped == []
        return step.batches

    def shares(self, model: MiniGPTv2) -> dict[str, float]:
        """Each corpus's share of the gradient, by name.

        The gradient is the sum over the corpora of a factor times the gradient of the mean over the corpus's tokens,
        which is what the published code computes for a batch of one corpus. The factor is the share.
        """
        weight = sum(batch.weight for batch in self.batches)
        whole = gradient(model, self.batches, weight)
        total, shares = torch.zeros_like(whole), {}
        for name, batches in self.corpora.items():
            part = gradient(model, batches, weight)
            plain = without_weights(batches)
            mean = gradient(model, plain, sum(batch.weight for batch in plain))
            shares[name] = float(part @ mean / (mean @ mean))
            assert float((part - shares[name] * mean).abs().max()) <= 1e-4 * float(part.abs().max()), name
            total += part
        assert float((total - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
        return shares


def by_task(recipe: Recipe, shares: dict[str, float]) -> dict[str, float]:
    """Percent of the gradient by task."""
    tasks: Counter[str] = Counter()
    for name, share in shares.items():
        tasks[recipe.corpora[name].task] += 100 * share  # type: ignore[assignment]
    return dict(tasks)


@pytest.mark.parametrize("name", ["stage3_instruct", "stage3_light", "stage2_multitask"])
def test_the_gradient_of_a_stage_has_the_shares_of_its_recipe(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    recipe = load_recipe(REPOSITORY / "data_recipes" / f"{name}.yaml")
    measured = Measured(recipe, shards_of(recipe, tmp_path), tokenizer)
    model = tiny_model(["projector", "lora"], lora_r=4, vocabulary=tokenizer.vocab_size)
    found = measured.shares(model)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-4)
    expected = dict(zip(measured.plan.names, measured.plan.mixture.loss_shares.tolist(), strict=True))
    tasks = by_task(recipe, found)
    assert tasks == pytest.approx(by_task(recipe, expected), abs=1.0)
    if name == "stage3_instruct":
        assert tasks == pytest.approx(PUBLISHED_GRADIENT, abs=1.0)
    sums = torch.tensor([batch.log_sums for batch in measured.batches], dtype=torch.float64).sum(0).tolist()
    realised = Composition.from_sums(sums, len(measured.plan.names)).shares_of_loss(measured.plan.names)
    assert {name: realised[name] for name in found} == pytest.approx(found, abs=1e-4)
