"""Offers a data plan as the source of a `webdataset.DataPipeline`, for trainers other than ours.

`PlanSource` yields the samples of the plan in order, as dictionaries of bytes like webdataset's own tar reader, so any
stage of webdataset can follow. `encode_examples` adds the tokens that our own training would use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from webdataset import PipelineStage, reraise_exception
from webdataset.utils import pytorch_worker_info

from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.errors import DataError
from minigptv2.prompt import PromptEncoder
from minigptv2.record import to_json
from minigptv2.shards.image_files import EXTENSION_OF, image_size

Handler = Callable[[Exception], bool]
"""A handler of bad samples, as in webdataset: raises, or returns True to leave the sample out (`warn_and_continue`)."""
_CHUNK = 256
"""Number of samples of a rank and worker that are looked up in the plan at once."""


class PlanSource(PipelineStage):
    """The first stage of a pipeline: yields the samples of a plan from position `start` to `stop`, in order.

    A rank reads the positions `start + rank`, `start + rank + world_size`, ... By default webdataset determines `rank`
    and `world_size`, from RANK and WORLD_SIZE or from `torch.distributed`. Workers of a `DataLoader` divide the
    positions of their rank further. To resume, pass the number of samples that all ranks have used together as `start`.
    The number of ranks may change.

    A sample holds bytes: `json` (the record) and, if it has an image, `jpg`, `png` or `webp`. If the corpus is sampled
    by turn, the record has only the turns of the sample. `__key__` and `__url__` are its key and its shard.
    `__position__` is its position in the plan, `__sample__` its `SampleId`.
    """

    def __init__(
        self,
        plan: DataPlan,
        *,
        start: int = 0,
        stop: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        handler: Handler = reraise_exception,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(f"pass both rank and world_size, or neither; got rank={rank}, world_size={world_size}")
        ends = [end for end in (stop, plan.length) if end is not None]
        self.plan = plan
        self.start, self.stop = start, min(ends, default=None)
        self.rank, self.world_size = rank, world_size
        self.handler = handler

    def run(self) -> Iterator[dict[str, Any]]:
        """Yield the samples of this rank and worker. A bad sample raises `DataError`, or goes to `handler`."""
        rank, world_size, worker, num_workers = pytorch_worker_info()
        if self.rank is not None and self.world_size is not None:
            rank, world_size = self.rank, self.world_size
        stride = world_size * num_workers
        for position, sample in self._positions(self.start + rank + world_size * worker, stride):
            try:
                yield self._read(position, sample)
            except DataError as error:
                if not self.handler(error):
                    return

    def _positions(self, first: int, stride: int) -> Iterator[tuple[int, SampleId]]:
        while self.stop is None or first < self.stop:
            end = first + _CHUNK * stride if self.stop is None else min(first + _CHUNK * stride, self.stop)
            samples = self.plan.samples(first, end - first)
            yield from zip(range(first, end, stride), samples[::stride], strict=True)
            first += _CHUNK * stride

    def _read(self, position: int, sample: SampleId) -> dict[str, Any]:
        reader = self.plan.corpora[sample.corpus]
        record = self.plan.record(sample)
        found: dict[str, Any] = {
            "__key__": reader.key(sample.sample),
            "__url__": f"{reader.folder}/{reader.shard_file(sample.sample)}",
            "__position__": position,
            "__sample__": sample,
            "json": to_json(record),
        }
        if record.has_image:
            image = reader.image(sample.sample)
            kind, _, _ = image_size(image, reader.where(sample.sample))
            found[EXTENSION_OF[kind]] = image
        return found


def encode_examples(
    plan: DataPlan, encoder: PromptEncoder, *, handler: Handler = reraise_exception
) -> Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]:
    """A stage that adds `input_ids` and `labels`, int64 [L], with the wording that the plan draws for the sample, and
    `num_cut`, the number of text tokens that `encoder.max_tokens` cut from its end.

    With the objective `sample` or `corpus` it also adds `loss_weights`, float32 [L], the factors on the losses of the
    supervised tokens: divide the sum of the weighted losses of a step by the sum of its weights. An image is a run of
    `prompt.IMAGE_PLACEHOLDER` in `input_ids`. Labels are not shifted, and `batch.IGNORE` where no loss is taken. A bad
    sample raises `DataError`, or goes to `handler`. Put the stage after `webdataset.decode`, which accepts only bytes.
    """

    plan.prepare(encoder)

    def stage(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            try:
                example = plan.encode(sample["__sample__"], encoder)
            except DataError as error:
                if handler(error):
                    continue
                return
            weights = {} if example.loss_weights is None else {"loss_weights": example.loss_weights}
            encoded = {"input_ids": example.input_ids, "labels": example.labels, "num_cut": example.num_cut}
            yield {**sample, **encoded, **weights}

    return stage
