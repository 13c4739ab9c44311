"""Defines the data section of a run's configuration, and the recipes in `data_recipes/`."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.config import MISSING, Resume, setting

BY_TURN, BY_IMAGE = "turn", "image"
SAMPLE_BY = (BY_TURN, BY_IMAGE)
"""Values of `CorpusShare.sample_by`."""
SHORTEST_TEXT_TOKENS = 16
"""Text tokens assumed for the shortest sample with an image. Shorter samples allow more images in a pack."""


@dataclass
class DataConfig:
    """Where the samples of a stage come from, and how they are packed."""

    recipe: str = setting(MISSING, resume=Resume.CONTENT, path=True, environment=True)
    """Path of the recipe, a YAML in `data_recipes/` that lists the corpora and their ratios."""
    shards: str = setting("data/shards", resume=Resume.CONTENT, path=True, environment=True)
    """Folder that holds one folder of shards per corpus, named as in the recipe."""
    max_tokens: int = setting(1024, resume=Resume.EQUAL)
    """Maximum number of text tokens of an example, so of all its tokens except image tokens. Longer text is cut there,
    as in the published code, and counted in the log: a cut answer has no `</s>`. An example whose first question alone
    is that long is dropped and reported. With image tokens an example must fit into `max_pack_tokens`."""
    max_pack_tokens: int = setting(16384, resume=Resume.FREE)
    """Maximum number of tokens in one micro-batch of one rank. A step with more tokens uses more micro-batches.
    Question-answer pairs that share an image are divided among several examples if they exceed it together."""
    image_cost_tokens: int = setting(87, resume=Resume.FREE)
    """Cost of encoding one image, in language-model tokens, for balancing packs: 2.25 TFLOP of EVA ViT-g at 448 px
    divided by 25.9 GFLOP per token of a frozen 7B model."""
    attention_cost_tokens: float = setting(3.0e-5, resume=Resume.FREE)
    """Cost, in tokens, that a token has for each token of its sample that it attends to: 0.79 MFLOP of 32 layers of
    width 4096 divided by 25.9 GFLOP per token."""
    num_workers: int = setting(2, resume=Resume.FREE)
    """Loader processes per rank, for any number of corpora. 0 reads in the training process."""
    worker_timeout_s: float = setting(300.0, resume=Resume.FREE)
    """Seconds after which a loader process without a result is replaced, after printing its stack. If this happens
    four times for the same step, the run stops."""


@dataclass
class CorpusShare:
    """One corpus of a recipe."""

    ratio: float | None = MISSING
    """Share of the mixture (or of its task, if the recipe has `tasks`), relative to the ratios of the other corpora, in
    the recipe's unit. null: the number of samples of the corpus (`sample_by`)."""
    task: str = "mixed"
    """The task of every turn of the corpus, or `mixed`. Checked against the manifest."""
    shards: str = ""
    """Folder of the corpus, relative to `data.shards`, or an `https://` or `s3://` URL. Empty: the corpus's name."""
    schedule: list[list[float]] = field(default_factory=list)
    """Factors on the ratio at given steps, as [step, factor] pairs. Factor 0 leaves the corpus out. Shares change
    linearly between the given steps, and are constant before the first and after the last."""
    epochs: float | None = None
    """The corpus leaves the mixture after exactly this many passes, in each of which every sample (`sample_by`) occurs
    once. The other corpora take its share. null: no limit."""
    sample_by: str = BY_TURN
    """What a sample is if the records hold several separate turns (objects, questions or regions of one image): `turn`,
    so that every turn is trained once per epoch, or `image`, which trains one turn of each image per epoch. Of no
    effect on corpora whose records hold one turn or a conversation."""
    batch_size: int | None = None
    """With `unit: batch`: number of samples in a batch of this corpus."""
    tokens: float | None = None
    """With `unit: token`: mean tokens per sample, including image tokens. null: measured on samples of the corpus."""
    share_images: int = 1
    """Maximum number of question-answer pairs that share the tokens of one image, each with the loss it would have
    alone. Applies to records with separate turns. With `sample_by: turn` the turns of an image are divided in each
    epoch into groups of at most this size, and a sample is a group. With `image` it is an image with its next so many
    pairs."""
    loss_share: float | None = None
    """With `objective: corpus`: share of the gradient that the corpus gets in expectation, relative to the other
    corpora. null: with `unit: batch`, its share of the batches. Other units require a number."""
    supervised_tokens: float | None = None
    """With `objective: corpus`: mean supervised tokens per sample. null: measured on samples of the corpus."""


@dataclass
class Recipe:
    """A mixture of corpora. Part of the data plan, which is a pure function of seed, recipe and manifests."""

    unit: str = setting("sample", resume=Resume.EQUAL)
    """What a ratio counts: `sample`, `token` (as the model sees them, including image tokens), or `batch` (of
    `batch_size` samples each, which are spread over the sequence and not drawn together)."""
    objective: str = setting("token", resume=Resume.EQUAL)
    """What has equal weight in the loss: every supervised `token`, every `sample`, or every `corpus` according to its
    `loss_share`. `corpus` is the objective of the published code."""
    temperature: float = setting(1.0, resume=Resume.EQUAL)
    """Ratios are raised to the power 1 / temperature: 1 keeps them, and larger values make them more equal. The
    ratios in `tasks` are not changed."""
    tasks: dict[str, float] = setting({}, resume=Resume.EQUAL)
    """Share of each task in the mixture. The ratios of the corpora then divide each task's share among its corpora.
    Empty: the ratios of the corpora divide the whole mixture."""
    shuffle_window: int = setting(4, resume=Resume.EQUAL)
    """Number of shards whose samples are shuffled together. A larger window mixes better and opens more files."""
    max_bad_in_a_row: int = setting(100, resume=Resume.FREE)
    """Number of consecutive damaged samples that stops the run."""
    max_bad_rate: float = setting(0.01, resume=Resume.FREE)
    """A larger share of damaged samples stops the run. Each rank counts the samples it read since its start."""
    corpora: dict[str, CorpusShare] = setting({}, resume=Resume.EQUAL)
    """Share of each corpus, by name."""
