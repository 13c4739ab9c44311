"""Evaluates a model on a fixed held-out slice during training: scored answers, and losses without generation.

Every method of `HeldOutSlice` is a collective: each rank takes its share of the slice, and all ranks run the same
modules equally often, whatever the lengths of their answers, because ZeRO-3 needs that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from minigptv2.boxes import iou, parse_boxes
from minigptv2.cluster import distributed
from minigptv2.data.collate import collate
from minigptv2.data.packing import Cost, pack_step
from minigptv2.errors import ConfigError
from minigptv2.heldout.config import EvaluateConfig
from minigptv2.heldout.pictures import grid, tile
from minigptv2.heldout.samples import HeldOutQuestion, load_heldout
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, ImageRef, ImageTokens
from minigptv2.prompt import Example
from minigptv2.shards.image_files import square
from minigptv2.tasks import TASKS, RenderedTurn, mean_scores
from minigptv2.tokenizer import Tokenizer

LOSS, EXPECTED_IOU = "loss", "expected_iou"
_NUM_DRAWS = 64
"""Boxes drawn from the model's distribution for an expected IoU, with the same random numbers each time."""

Metrics = dict[str, dict[str, float]]
"""Corpus to metric to value."""


@dataclass(frozen=True)
class EvaluationResult:
    """The result of one evaluation: mean metrics by corpus, and a grid of drawn images by corpus, uint8 [H, W, 3]."""

    metrics: Metrics = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)


class HeldOutSlice:
    """The held-out slice, in memory on every rank. `max_pack_tokens` limits the packs whose losses are computed."""

    def __init__(self, config: EvaluateConfig, predictor: Predictor, *, max_pack_tokens: int) -> None:
        self._config = config
        self._predictor = predictor
        self._max_pack_tokens = max_pack_tokens
        self._generation_items: list[HeldOutQuestion] = []
        self._loss_items: list[HeldOutQuestion] = []
        self._drawn: set[int] = set()
        self._digits = digit_ids(predictor.tokenizer)
        for corpus in config.corpora if config.shards else []:
            num_answers = max(config.samples, config.questions)
            items = load_heldout(Path(config.shards) / corpus, max(num_answers, config.loss_samples, 1))
            first = len(self._generation_items)
            self._drawn |= {first + i for i in range(min(config.samples, len(items)))}
            self._generation_items += items[:num_answers]
            self._loss_items += items[: config.loss_samples]
        corpora = {item.corpus for item in self._generation_items}
        self.best = BestMetric(config.keep_best, corpora) if config.keep_best else None

    def evaluate(self) -> EvaluationResult:
        """Generate and score answers, divided over the ranks. The result is empty on ranks other than the main one."""
        if not self._generation_items:
            return EvaluationResult()
        count, rank = distributed.world_size(), distributed.rank()
        share = -(-len(self._generation_items) // count)
        # Every rank answers `share` items: a rank with fewer repeats some, so that all ranks stay in step.
        mine = [(rank + count * i) % len(self._generation_items) for i in range(share)]
        items = [self._generation_items[i] for i in mine]
        requests = [item.request() for item in items]
        image_tokens = self._encode_images(items)
        decoding = Decoding(self._config.max_new_tokens)
        texts = self._predictor.answer(requests, decoding, batch_size=max(1, share), seen=image_tokens)
        gathered = distributed.gather_on_main(list(zip(mine, texts, strict=True)))
        answers = dict(pair for of_rank in gathered for pair in of_rank)
        return self._result(answers) if distributed.is_main() else EvaluationResult()

    def losses(self) -> Metrics:
        """The loss per token of the true answers by corpus, and the expected IoU of boxes. The same on every rank.

        No answer is generated.
        """
        examples = [_example(self._predictor, item) for item in self._loss_items]
        if not examples:
            return {}
        corpora = list(dict.fromkeys(item.corpus for item in self._loss_items))
        sums = torch.zeros(len(corpora), 4, dtype=torch.float64)  # loss, tokens, IoU, boxes
        model = self._predictor.model
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for pack in self._packs(examples)[distributed.rank() :: distributed.world_size()]:
                for i, logits, targets in self._logits(pack, examples):
                    item = self._loss_items[i]
                    total = sums[corpora.index(item.corpus)]
                    total[0] += cross_entropy(logits, targets, reduction="sum").item()
                    total[1] += len(targets)
                    if TASKS[item.turn.task].answer == "box" and self._digits:
                        total[2] += expected_iou(logits, targets, self._digits, item, self._predictor.tokenizer)
                        total[3] += 1
        model.train(was_training)
        sums = distributed.sum_over_ranks(sums.to(self._device)).cpu()
        return {
            corpus: {LOSS: float(total[0] / total[1])}
            | ({EXPECTED_IOU: float(total[2] / total[3])} if total[3] else {})
            for corpus, total in zip(corpora, sums, strict=True)
        }

    @property
    def _device(self) -> torch.device:
        return next(self._predictor.model.parameters()).device

    def _packs(self, examples: list[Example]) -> list[list[int]]:
        """Positions of the examples of each pack, equally many packs for each rank."""
        costs = [Cost(len(e), float(len(e)), images=e.num_images) for e in examples]
        return pack_step(
            costs,
            num_ranks=distributed.world_size(),
            min_packs_per_rank=1,
            max_pack_tokens=max(self._max_pack_tokens, *(cost.tokens for cost in costs)),
        )

    def _encode_images(self, items: list[HeldOutQuestion]) -> ImageTokens:
        """The image tokens of the items. Each rank encodes equally many images, a blank one for an item without."""
        image_tokens: ImageTokens = {}
        images = [item.image if item.image is not None else Image.new("RGB", (8, 8)) for item in items]
        distinct = [image.copy() for image in images]  # a repeated item is encoded twice, which keeps ranks in step
        with torch.no_grad(), self._predictor.model.generating():
            self._predictor.image_tokens(distinct, image_tokens)
        for image, copy in zip(images, distinct, strict=True):
            image_tokens[ImageRef(image)] = image_tokens[ImageRef(copy)]
        return image_tokens

    def _logits(self, pack: Sequence[int], examples: list[Example]) -> list[tuple[int, Tensor, Tensor]]:
        """Position, logits and targets of each example of a pack."""
        model = self._predictor.model
        side = model.image_size
        images = [square(image, side) for i in pack if (image := self._loss_items[i].image) is not None]
        batch = collate([examples[i] for i in pack], images, side).arguments_on(self._device)
        keys = ("input_ids", "labels", "position_ids", "pixel_values", "layout")
        logits, targets, places = model.answer_logits(**{key: batch[key] for key in keys})
        segments = batch["segment_ids"][0][places]
        return [(i, logits[segments == n], targets[segments == n]) for n, i in enumerate(pack, 1)]

    def _result(self, answers: dict[int, str]) -> EvaluationResult:
        scores: dict[str, list[dict[str, float]]] = {}
        tiles: dict[str, list[Image.Image]] = {}
        for i, item in enumerate(self._generation_items):
            scores.setdefault(item.corpus, []).append(item.score(answers[i]))
            if i in self._drawn:
                tiles.setdefault(item.corpus, []).append(tile(item, answers[i]))
        return EvaluationResult(
            {corpus: mean_scores(several) for corpus, several in scores.items()},
            {f"heldout/{corpus}": np.asarray(grid(several)) for corpus, several in tiles.items()},
        )


@dataclass
class BestMetric:
    """The best value so far of the metric `name`, which is `<corpus>/<metric>`."""

    name: str
    corpora: set[str]
    value: float | None = None

    def __post_init__(self) -> None:
        corpus, _, metric = self.name.partition("/")
        if corpus not in self.corpora or not metric:
            raise ConfigError(
                f"evaluate.keep_best={self.name}: expected <corpus>/<metric> with a corpus from {sorted(self.corpora)}"
            )

    @property
    def metric(self) -> str:
        """The metric's name without the corpus."""
        return self.name.partition("/")[2]

    def update(self, metrics: Metrics) -> bool:
        """Whether `metrics` improve on the best value, which is then replaced. The first finite value does."""
        corpus = self.name.partition("/")[0]
        of_corpus = metrics.get(corpus, {})
        if self.metric not in of_corpus:
            raise ConfigError(
                f"evaluate.keep_best={self.name}: the metrics of {corpus} are {', '.join(of_corpus) or 'none'}"
            )
        value = of_corpus[self.metric]
        better = self.value is None or (value < self.value if self.metric == LOSS else value > self.value)
        improved = better and math.isfinite(value)
        self.value = value if improved else self.value
        return improved


def digit_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Token id to digit, for a tokenizer that gives each digit of a box its own id. Empty for others."""
    encoded = [tokenizer.encode(f"<{digit}>") for digit in range(10)]
    if len({len(ids) for ids in encoded}) != 1:
        return {}
    differing = [place for place, ids in enumerate(zip(*encoded, strict=True)) if len(set(ids)) == 10]
    if len(differing) != 1:
        return {}
    return {ids[differing[0]]: str(digit) for digit, ids in enumerate(encoded)}


def expected_iou(
    logits: Tensor, targets: Tensor, digits: dict[int, str], item: HeldOutQuestion, tokenizer: Tokenizer
) -> float:
    """Mean IoU, 0..1, of boxes whose digits are drawn from the model's distribution given the true text before each.

    `logits` [T, vocabulary] and `targets` [T] belong to a true answer that is a box. A draw that is not a box with a
    positive area counts as 0.
    """
    ids = targets.tolist()
    places = [place for place, one in enumerate(ids) if one in digits]
    order = sorted(digits, key=lambda one: digits[one])
    probabilities = logits[places][:, order].double().softmax(dim=-1).cpu().numpy()
    uniform = np.random.default_rng(0).random((_NUM_DRAWS, len(places)))
    drawn = (uniform[..., None] > probabilities.cumsum(axis=1)[None]).sum(axis=2).clip(max=9)
    truth = item.turn.regions[0].boxes[0]
    total = 0.0
    for numbers in drawn:
        candidate = list(ids)
        for place, number in zip(places, numbers, strict=True):
            candidate[place] = order[number]
        boxes = parse_boxes(tokenizer.decode(candidate), item.width, item.height)
        total += iou(boxes[0], truth) if boxes and boxes[0].is_upright else 0.0
    return total / len(drawn)


def _example(predictor: Predictor, item: HeldOutQuestion) -> Example:
    turn = RenderedTurn(item.turn.task, item.question, item.answer)
    example = predictor.encoder.encode_rendered([turn], num_images=int(TASKS[item.turn.task].shape.image))
    if example is None or len(example) > predictor.model.max_positions:
        raise ConfigError(f"evaluate.corpora: sample {item.sample} of {item.corpus} exceeds the model's context length")
    return example
