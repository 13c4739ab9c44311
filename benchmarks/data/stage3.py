"""Generates sample lengths of the stage-3 mixture from the recipe's shares and assumed lengths per task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigptv2.data.mixture import Mixture
from minigptv2.data.packing import Cost
from minigptv2.data.plan import load_recipe

RECIPE = Path(__file__).parent.parent.parent / "data_recipes" / "stage3_instruct.yaml"
IMAGE_TOKENS, MAX_TOKENS = 256, 1024
IMAGE_COST, ATTENTION_COST = 87, 3.0e-5
"""The values of `DataConfig` for the full-size model."""
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


def costs_of_mix(count: int, seed: int = 0) -> list[Cost]:
    """Return the costs of the first `count` samples of the stage-3 mixture."""
    recipe = load_recipe(RECIPE)
    corpora, _ = Mixture(recipe, [10**6] * len(recipe.corpora)).draw(0, count)
    tasks = [line.task for line in recipe.corpora.values()]
    median, sigma = (np.array([TEXT_TOKENS[task][column] for task in tasks])[corpora] for column in (0, 1))
    with_image = np.array([task != "language" for task in tasks])[corpora]
    text = np.rint(median * np.exp(sigma * np.random.default_rng(seed).standard_normal(count))).astype(int)
    tokens = np.minimum(np.maximum(text, 20) + IMAGE_TOKENS * with_image, MAX_TOKENS)
    compute = tokens + ATTENTION_COST * tokens.astype(float) ** 2 + IMAGE_COST * with_image
    return [Cost(int(t), float(c), int(i)) for t, c, i in zip(tokens, compute, with_image, strict=True)]
