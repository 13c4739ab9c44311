"""What a run's YAML may say about data, and what a recipe in `data_recipes/` may say."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.config import MISSING


@dataclass
class DataConfig:
    """Where the samples of a stage come from and how they are packed."""

    recipe: str = MISSING
    """Path of the recipe, a YAML in `data_recipes/`: which corpora, at which ratios."""
    shards: str = "data/shards"
    """Folder that holds one folder of shards per corpus, named as in the recipe."""
    max_tokens: int = 1024
    """Longest example in tokens, image tokens included; trailing turns beyond it are left out whole, and an example
    whose first turn does not fit is dropped and named."""
    max_pack_tokens: int = 16384
    """Most tokens in one micro-batch of one rank. A step that needs more takes more micro-batches, none is cut."""
    image_cost_tokens: int = 87
    """What encoding one image costs, in language-model tokens, for balancing packs: 2.25 TFLOP of EVA ViT-g at 448 px
    against 25.9 GFLOP a token of a frozen 7B model."""
    num_workers: int = 2
    """Loader processes per rank; 0 reads in the training process."""
    max_bad_in_a_row: int = 100
    """This many damaged samples, in steps in a row without a good one, stop the run: it is the data or the code."""


@dataclass
class CorpusShare:
    """One line of a recipe."""

    ratio: float = MISSING
    """Share of the mixture, relative to the other lines' ratios; in the recipe's unit."""
    task: str = "mixed"
    """The task that every turn of the corpus has, or `mixed`. Checked against the manifest."""
    shards: str = ""
    """Folder of the corpus, relative to `data.shards`; empty: the corpus's name."""


@dataclass
class Recipe:
    """A mixture: part of the data plan, which is a pure function of seed, recipe and manifests."""

    unit: str = "sample"
    """What a ratio counts. `sample`: of 100 samples drawn, ratio / sum of ratios x 100 come from the corpus."""
    shuffle_window: int = 4
    """Shards whose samples are shuffled together; larger mixes better and opens more files."""
    corpora: dict[str, CorpusShare] = field(default_factory=dict)
    """Corpus name to its share."""
