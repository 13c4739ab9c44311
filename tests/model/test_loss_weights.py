"""The weighted loss of any split into packs is that of samples that run alone, for each objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from minigptv2.batch import IGNORE
from minigptv2.data.collate import collate
from minigptv2.data.objective import weigh
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import Example, share_image
from tests.model.test_shared_images import pairs
from tests.model.tiny import random_examples, tiny_model

SPLITS = 200
CORPUS_WEIGHTS = (0.02, 1.0, 13.5)
Weighed = tuple[Example, list[np.ndarray], list[Example], float]
"""An example, its images, the examples that it consists of, each alone and without weights, and its corpus's weight."""


def examples_of(objective: str) -> list[Weighed]:
    """Seven examples of three corpora: with images, without, and pairs that share an image."""
    rng = np.random.default_rng(5)
    made: list[Weighed] = []
    for number in range(3):
        (example,), images = random_examples(1, seed=number)
        made.append((example, images, [example], CORPUS_WEIGHTS[number]))
    for number in range(2):
        (example,), _ = random_examples(1, seed=20 + number, with_images=False)
        labels = example.labels.copy()
        labels[-int(rng.integers(6, 11)) :] = example.input_ids[-1]
        text = Example(example.input_ids, np.where(labels == IGNORE, IGNORE, example.input_ids), example.task_ids, 0)
        made.append((text, [], [text], CORPUS_WEIGHTS[number]))
    for number, count in enumerate((2, 4)):
        alone, image = pairs(count, seed=number)
        made.append((share_image(alone), [image], alone, CORPUS_WEIGHTS[number + 1]))
    return [(weigh(example, objective, w), images, alone, w) for example, images, alone, w in made]


def gradient(model: MiniGPTv2) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def reference(model: MiniGPTv2, objective: str) -> tuple[float, Tensor]:
    """Mean loss and its gradient by the definition of the objective: each sample alone, each token with its weight."""
    model.zero_grad()
    total, weights = torch.zeros(()), 0.0
    for _, images, alone, corpus_weight in examples_of(objective):
        for example in alone:
            batch = collate([example], images[: example.num_images], 32).inputs
            embedded = model.embed(batch["input_ids"], batch["pixel_values"])
            losses, _ = model.token_losses(embedded, batch["labels"], batch["position_ids"])
            weight = {"token": 1.0, "sample": 1 / len(losses), "corpus": corpus_weight}[objective]
            total = total + weight * losses.double().sum()
            weights += weight * len(losses)
    (total / weights).backward()
    return float(total.detach()) / weights, gradient(model)


def random_split(count: int, split: int) -> list[list[int]]:
    """Example numbers by pack, for any number of ranks and micro-batches. Packs may be empty."""
    rng = np.random.default_rng([3, split])
    order = [int(number) for number in rng.permutation(count)]
    cuts = np.sort(rng.integers(0, count + 1, int(rng.integers(0, 6)))).tolist()
    return [order[start:end] for start, end in zip([0, *cuts], [*cuts, count], strict=True)]


@pytest.mark.parametrize("objective", ["token", "sample", "corpus"])
def test_two_hundred_splits_have_the_loss_and_gradient_of_samples_alone(objective: str) -> None:
    model = tiny_model(["projector", "lora"], lora_r=4).double()
    examples = examples_of(objective)
    loss, expected = reference(model, objective)
    worst, empty = 0.0, 0
    for split in range(SPLITS):
        packs = random_split(len(examples), split)
        batches = [
            collate([examples[n][0] for n in pack], [image for n in pack for image in examples[n][1]], 32)
            for pack in packs
        ]
        empty += any(not pack for pack in packs)
        weight = sum(batch.weight for batch in batches)
        model.zero_grad()
        total = 0.0
        for batch in batches:
            output = model(**batch.inputs)
            (output["loss_sum"] / weight).backward()
            total += float(output["loss_sum"].detach()) / weight
        assert total == pytest.approx(loss, rel=1e-6)
        worst = max(worst, float((gradient(model) - expected).abs().max() / expected.abs().max()))
    assert worst <= 1e-6 and empty > SPLITS / 10


def test_weights_do_not_reach_the_losses_by_task() -> None:
    model = tiny_model(["projector", "lora"], lora_r=4)
    examples, images = random_examples(4, seed=1)
    plain = model(**collate(examples, images, 32).inputs)
    weighed = model(**collate([weigh(e, "corpus", 3.0) for e in examples], images, 32).inputs)
    for key in ("task_loss", "task_tokens", "num_tokens"):
        assert torch.equal(plain[key], weighed[key])  # type: ignore[literal-required]
    assert float(weighed["loss_sum"].detach()) == pytest.approx(3 * float(plain["loss_sum"].detach()), rel=1e-6)


def test_weights_of_one_change_no_bit() -> None:
    model = tiny_model(["projector", "lora"], lora_r=4)
    examples, images = random_examples(4, seed=1)
    found = []
    for more in (examples, [weigh(e, "corpus", 1.0) for e in examples]):
        model.zero_grad()
        output = model(**collate(more, images, 32).inputs)
        output["loss_sum"].backward()
        found.append((output["loss_sum"].detach(), gradient(model)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
