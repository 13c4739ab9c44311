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
    attention_cost_tokens: float = 3.0e-5
    """What a token pays, in tokens, for each token of its sample that it may look at: 0.79 MFLOP of 32 layers of width
    4096 against 25.9 GFLOP a token."""
    num_workers: int = 2
    """Loader processes per rank, however many corpora; 0 reads in the training process."""
    worker_timeout_s: float = 300.0
    """A loader process that gives nothing for so long is replaced, after its stack was printed; four times the same
    step's, and the run stops."""


@dataclass
class CorpusShare:
    """One line of a recipe."""

    ratio: float | None = MISSING
    """Share of the mixture (of its task, where the recipe has `tasks`), relative to the other lines' ratios, in the
    recipe's unit. null: as many as the corpus has samples."""
    task: str = "mixed"
    """The task that every turn of the corpus has, or `mixed`. Checked against the manifest."""
    shards: str = ""
    """Folder of the corpus, relative to `data.shards`, or an `https://` or `s3://` URL; empty: the corpus's name."""
    schedule: list[list[float]] = field(default_factory=list)
    """What the ratio is multiplied by at some steps of the run, as [step, factor] pairs; 0 leaves the corpus out.
    Shares move in straight lines from one named step to the next, level before the first and after the last."""
    epochs: float | None = None
    """The corpus leaves the mixture after exactly this many passes, every sample once in each; the others take its
    share. null: as often as the ratio asks."""
    batch_size: int | None = None
    """With `unit: batch`: samples in a batch of this corpus."""
    tokens: float | None = None
    """With `unit: token`: mean tokens of a sample, image tokens included. null: measured on samples of the corpus."""
    share_images: int = 1
    """Most question-answer pairs of one image that share its tokens, each with the loss it would have alone. Concerns
    records of separate turns; a visit trains the next so many of them. A sample is then an image with its pairs."""


@dataclass
class Recipe:
    """A mixture: part of the data plan, which is a pure function of seed, recipe and manifests."""

    unit: str = "sample"
    """What a ratio counts: `sample`, `token` (as the model sees them, image tokens included), or `batch` (each of the
    line's `batch_size` samples, which are then spread, not drawn in a clump)."""
    temperature: float = 1.0
    """Ratios are taken to the power 1 / temperature: 1 leaves them, larger ones bring them nearer to equal. Tasks' own
    ratios are left alone."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Task to its share of the mixture; the corpora's ratios then divide each task's share among its corpora. Empty:
    the corpora's ratios divide the whole."""
    shuffle_window: int = 4
    """Shards whose samples are shuffled together; larger mixes better and opens more files."""
    max_bad_in_a_row: int = 100
    """So many damaged samples one after the other stop the run: it is the data or the code."""
    max_bad_rate: float = 0.01
    """A larger share of damaged samples stops the run; counted by each rank, over what it saw since it started."""
    corpora: dict[str, CorpusShare] = field(default_factory=dict)
    """Corpus name to its share."""
