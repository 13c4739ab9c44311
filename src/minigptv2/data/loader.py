"""One global step at a time: the samples of the plan, encoded, packed, and this rank's packs as batches.

Every rank reads the (small) records of the whole step and packs them alike; it decodes the images of its own packs
only. Damaged samples are dropped by name, counted, and fatal when there are too many in a row.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from minigptv2.data.collate import Batch, collate
from minigptv2.data.config import DataConfig
from minigptv2.data.dropped import DropLimit, Dropped
from minigptv2.data.images import open_image, square
from minigptv2.data.packing import Cost, pack_step
from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.errors import DataError
from minigptv2.prompt import Example, PromptEncoder


@dataclass
class StepBatches:
    """What one rank trains on in one optimizer step: its micro-batches and what was left out, with reasons."""

    position: int
    """Position in the plan of the step's first sample."""
    batches: list[Batch]
    sample_ids: list[list[SampleId]]
    """The samples in each micro-batch, for error reports."""
    dropped: list[Dropped]
    """Every sample of the step that this rank found to be bad and is the one to report."""
    outcomes: list[bool]
    """Whether each sample that this rank looked into was good, in the plan's order."""
    num_samples: int


class StepDataset(Dataset[StepBatches]):
    """Map-style: index is the position in the plan of a step's first sample.

    `micro_batch_size` is the mean number of samples per micro-batch; packs of long samples hold fewer.
    """

    def __init__(self, plan: DataPlan, encoder: PromptEncoder, config: DataConfig, *, image_size: int,
                 global_batch_size: int, micro_batch_size: int, rank: int, world_size: int) -> None:  # fmt: skip
        self.plan = plan
        self.encoder = encoder
        self.config = config
        self.image_size = image_size
        self.global_batch_size = global_batch_size
        self.packs_per_rank = global_batch_size // (micro_batch_size * world_size)
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, position: int) -> StepBatches:
        dropped: list[Dropped] = []
        good: dict[int, bool] = {}
        numbers: list[int] = []
        kept: list[SampleId] = []
        examples: list[Example] = []
        for number, sample in enumerate(self.plan.samples(position, self.global_batch_size)):
            try:
                examples.append(self.plan.encode(sample, self.encoder))
            except DataError as error:
                good[number] = False
                dropped.append(self.plan.corpora[sample.corpus].dropped(sample.sample, error))
                continue
            kept.append(sample)
            numbers.append(number)
        costs = [self._cost(example) for example in examples]
        packs = pack_step(
            costs,
            num_ranks=self.world_size,
            min_packs_per_rank=self.packs_per_rank,
            max_pack_tokens=self.config.max_pack_tokens,
        )
        if self.rank != 0:  # a bad record is seen by every rank and reported by the first
            dropped = []
        batches, sample_ids = [], []
        for pack in packs[self.rank :: self.world_size]:
            lost = len(dropped)
            batch, ids = self._batch([(kept[i], examples[i]) for i in pack], dropped)
            batches.append(batch)
            sample_ids.append(ids)
            good |= {numbers[i]: lost == len(dropped) or kept[i] in ids for i in pack}
        outcomes = [good[number] for number in sorted(good)]
        return StepBatches(position, batches, sample_ids, dropped, outcomes, self.global_batch_size)

    def _cost(self, example: Example) -> Cost:
        length, images = len(example), example.num_images
        looks = self.config.attention_cost_tokens * length**2
        return Cost(length, length + looks + self.config.image_cost_tokens * images, images)

    def _batch(self, pack: list[tuple[SampleId, Example]], dropped: list[Dropped]) -> tuple[Batch, list[SampleId]]:
        examples, images, ids = [], [], []
        for sample, example in pack:
            try:
                if example.num_images:
                    images.append(self._pixels(sample))
            except DataError as error:
                dropped.append(self.plan.corpora[sample.corpus].dropped(sample.sample, error))
                continue
            examples.append(example)
            ids.append(sample)
        return collate(examples, images, self.image_size), ids

    def _pixels(self, sample: SampleId) -> np.ndarray:
        reader = self.plan.corpora[sample.corpus]
        return square(open_image(reader.image(sample.sample), reader.where(sample.sample)), self.image_size)


class _Positions(Sampler[int]):
    def __init__(self, start: int, stride: int, count: int) -> None:
        self._positions = range(start, start + stride * count, stride)

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def _leave_signals_to_the_rank(worker: int) -> None:
    """A scheduler's SIGTERM reaches workers too; torch's would die of it and fail the step that is to be saved."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def iterate_steps(dataset: StepDataset, *, position: int, num_steps: int) -> Iterator[StepBatches]:
    """Yield `num_steps` steps from `position` on, read ahead by worker processes.

    Raises `DataError` where this rank sees more bad samples than the recipe tolerates (`DropLimit`).
    """
    config = dataset.config
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=_Positions(position, dataset.global_batch_size, num_steps),
        num_workers=config.num_workers,
        prefetch_factor=2 if config.num_workers else None,
        persistent_workers=False,
        worker_init_fn=_leave_signals_to_the_rank,
    )
    recipe = dataset.plan.recipe
    limit = DropLimit(recipe.max_bad_in_a_row, recipe.max_bad_rate)
    for step in loader:
        limit.judge(step.outcomes, step.dropped)
        yield step
