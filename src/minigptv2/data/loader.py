"""Loads one global step at a time: encodes and packs the samples of the plan, and makes this rank's batches.

Every rank reads the (small) records of the whole step and computes the same packs. It decodes only the images of its
own packs. Damaged samples are dropped, reported and counted, and too many of them stop the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minigptv2.batch import MicroBatch
from minigptv2.data.collate import collate
from minigptv2.data.config import DataConfig
from minigptv2.data.objective import Composition
from minigptv2.data.packing import Cost, pack_step
from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.data.workers import WorkerPool
from minigptv2.errors import DataError
from minigptv2.prompt import Example, PromptEncoder, split_shared
from minigptv2.shards.dropped import DropLimit, Dropped
from minigptv2.shards.fast_decode import Stopwatch, square_pixels


@dataclass
class StepBatches:
    """What one rank trains on in one optimizer step: its micro-batches and what was left out, with reasons."""

    position: int
    """Position of the step's first sample in the plan."""
    batches: list[MicroBatch]
    sample_ids: list[list[SampleId]]
    """The samples in each micro-batch, for error reports."""
    dropped: list[Dropped]
    """The bad samples of the step that this rank has to report."""
    outcomes: list[bool]
    """Whether each sample that this rank read, and has to count, was good, in the plan's order."""
    num_samples: int
    truncated: list[tuple[SampleId, int]] = field(default_factory=list)
    """The samples of the step, on all ranks, whose text was cut at `max_tokens`, with the number of tokens cut."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time to make the batches, by stage: records, packing, read, decode, resize."""


class StepDataset:
    """The batches of one rank, step by step. The index is the position of a step's first sample in the plan.

    `micro_batch_size` is the mean number of samples per micro-batch. Packs of long samples hold fewer. Calls
    `plan.prepare`. The log sums of a micro-batch are the `Composition` of its loss.
    """

    def __init__(
        self,
        plan: DataPlan,
        encoder: PromptEncoder,
        config: DataConfig,
        *,
        image_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        plan.prepare(encoder)
        self.plan = plan
        self.encoder = encoder
        self.config = config
        self.image_size = image_size
        self.global_batch_size = global_batch_size
        self.packs_per_rank = global_batch_size // (micro_batch_size * world_size)
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, position: int) -> StepBatches:
        watch = Stopwatch()
        dropped: list[Dropped] = []
        good: dict[int, bool] = {}
        numbers: list[int] = []
        kept: list[SampleId] = []
        examples: list[Example] = []
        truncated: list[tuple[SampleId, int]] = []
        with watch.measure("records"):
            for number, sample in enumerate(self.plan.samples(position, self.global_batch_size)):
                try:
                    example = self.plan.encode(sample, self.encoder)
                except DataError as error:
                    if number % self.world_size == self.rank:  # every rank reads it, one rank counts it
                        good[number] = False
                    dropped.append(self.plan.corpora[sample.corpus].dropped(sample.sample, error))
                    continue
                if example.num_cut:
                    truncated.append((sample, example.num_cut))
                for part in split_shared(example, self.config.max_pack_tokens):
                    examples.append(part)
                    kept.append(sample)
                    numbers.append(number)
        with watch.measure("packing"):
            packs = self._pack(examples)
        if self.rank != 0:  # every rank reads a bad record, and rank 0 reports it
            dropped = []
        batches, sample_ids = [], []
        for pack in packs[self.rank :: self.world_size]:
            before = len(dropped)
            batch, ids = self._batch([(kept[i], examples[i]) for i in pack], dropped, watch)
            batches.append(batch)
            sample_ids.append(ids)
            good |= {numbers[i]: before == len(dropped) or kept[i] in ids for i in pack}
        outcomes = [good[number] for number in sorted(good)]
        seconds = dict(watch.seconds)
        return StepBatches(position, batches, sample_ids, dropped, outcomes, self.global_batch_size, truncated, seconds)

    def _pack(self, examples: list[Example]) -> list[list[int]]:
        return pack_step(
            [self._cost(example) for example in examples],
            num_ranks=self.world_size,
            min_packs_per_rank=self.packs_per_rank,
            max_pack_tokens=self.config.max_pack_tokens,
        )

    def _cost(self, example: Example) -> Cost:
        length, images = len(example), example.num_images
        attention = self.config.attention_cost_tokens * length**2
        return Cost(length, length + attention + self.config.image_cost_tokens * images, images)

    def _batch(
        self, pack: list[tuple[SampleId, Example]], dropped: list[Dropped], watch: Stopwatch
    ) -> tuple[MicroBatch, list[SampleId]]:
        examples, ids = [], []
        images = torch.empty(
            (sum(example.num_images for _, example in pack), 3, self.image_size, self.image_size), dtype=torch.uint8
        )
        num_images = 0
        for sample, example in pack:
            try:
                if example.num_images:
                    images[num_images] = self._pixels(sample, watch)
                    num_images += 1
            except DataError as error:
                dropped.append(self.plan.corpora[sample.corpus].dropped(sample.sample, error))
                continue
            examples.append(example)
            ids.append(sample)
        with watch.measure("packing"):
            batch = collate(examples, images[:num_images], self.image_size)
            composition = Composition.of(examples, [sample.corpus for sample in ids], len(self.plan.names))
            return replace(batch, log_sums=composition.as_sums()), ids

    def _pixels(self, sample: SampleId, watch: Stopwatch) -> Tensor:
        reader = self.plan.corpora[sample.corpus]
        with watch.measure("read"):
            data = reader.image(sample.sample)
        try:
            return square_pixels(data, "", self.image_size, watch, max_pixels=reader.manifest.max_pixels)
        except DataError as error:  # the location costs reads, so it is only computed on errors
            raise DataError(f"{reader.where(sample.sample)}{error}") from error


def input_bound(wait_share: float, seconds: dict[str, float]) -> str:
    """The share of time that training waited for data, and the stages that take most of the loader processes' time.

    `seconds` by stage, as in `StepBatches`. For example `input-bound 23 %: decode 61 %, resize 20 %, records 10 %`.
    """
    total = sum(seconds.values())
    stages = sorted(seconds.items(), key=lambda stage: -stage[1])[:3]
    parts = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in stages if value >= 0.005 * total)
    return f"input-bound {100 * wait_share:.0f} %" + (f": {parts}" if total else "")


def truncation_report(plan: DataPlan, truncated: list[tuple[SampleId, int]], max_tokens: int) -> str:
    """How many samples of each corpus were cut at `max_tokens`, and the one that lost most, for the log."""
    counts = Counter(plan.names[sample.corpus] for sample, _ in truncated)
    longest, num_cut = max(truncated, key=lambda pair: pair[1])
    return (
        f"truncated {len(truncated)} samples to {max_tokens} text tokens (data.max_tokens): "
        + ", ".join(f"{name} {count}" for name, count in counts.most_common())
        + f". The longest is {plan.name_of(longest)}, where {num_cut} tokens were cut"
    )


def iterate_steps(dataset: StepDataset, *, position: int, num_steps: int) -> Iterator[StepBatches]:
    """Yield `num_steps` steps from `position` on, loaded in advance by worker processes.

    Raises `TooManyDropped` if this rank reads more bad samples than the recipe tolerates (`DropLimit`).
    """
    config = dataset.config
    stride = dataset.global_batch_size
    positions = range(position, position + stride * num_steps, stride)
    steps: Iterable[StepBatches] = map(dataset.__getitem__, positions)
    if config.num_workers:
        name = f"data of rank {dataset.rank}"
        steps = WorkerPool(dataset.__getitem__, positions, config.num_workers, config.worker_timeout_s, name=name)
    recipe = dataset.plan.recipe
    limit = DropLimit(recipe.max_bad_in_a_row, recipe.max_bad_rate)
    for step in steps:
        limit.judge(step.outcomes, step.dropped)
        yield step
