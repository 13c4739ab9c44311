"""Generates sample lengths of a stage's mixture from the recipe's shares and assumed lengths per task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigptv2.data.config import DataConfig
from minigptv2.data.mixture import Mixture
from minigptv2.data.packing import Cost
from minigptv2.data.plan import load_recipe

IMAGE_TOKENS = 256
TEXT_TOKENS = {
    "vqa": (45, 0.25),
    "caption": (40, 0.25),
    "grounding": (140, 0.4),
    "refer": (55, 0.2),
    "identify": (55, 0.2),
    "detection": (120, 0.5),
    "conversation": (230, 0.6),
    "language": (160, 0.8),
    "mixed": (260, 0.5),
}
"""Median text tokens and sigma of their logarithm by task. Estimates from the texts of the corpora."""
SHORTEST_TEXT = 20


def costs_of_mix(recipe: str | Path, count: int, data: DataConfig | None = None, *, seed: int = 0) -> list[Cost]:
    """Return the costs of the first `count` samples of a recipe's mixture, under the settings of `data`.

    Every corpus counts as one million samples. A sample has one question, and an image unless its task is language.
    Text is cut at `data.max_tokens`.
    """
    data = data or DataConfig()
    mixture = load_recipe(recipe)
    corpora, _ = Mixture(mixture, [10**6] * len(mixture.corpora)).draw(0, count)
    tasks = [line.task for line in mixture.corpora.values()]
    median, sigma = (np.array([TEXT_TOKENS[task][column] for task in tasks])[corpora] for column in (0, 1))
    with_image = np.array([task != "language" for task in tasks])[corpora]
    text = np.rint(median * np.exp(sigma * np.random.default_rng(seed).standard_normal(count))).astype(int)
    tokens = np.clip(text, SHORTEST_TEXT, data.max_tokens) + IMAGE_TOKENS * with_image
    attention = data.attention_cost_tokens * tokens.astype(float) ** 2
    compute = tokens + attention + data.image_cost_tokens * with_image
    return [Cost(int(t), float(c), int(i)) for t, c, i in zip(tokens, compute, with_image, strict=True)]
