"""A fixed held-out slice, looked at while the model trains: answers in step over all ranks, and losses without them.

Everything here is a collective: each rank takes its share of the slice, and all run the same modules the same number of
times, as ZeRO-3 wants, whatever the lengths of their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from minigptv2.boxes import Box, iou, parse_boxes
from minigptv2.cluster import distributed
from minigptv2.data.collate import collate
from minigptv2.data.packing import Cost, pack_step
from minigptv2.errors import ConfigError
from minigptv2.heldout.config import EvaluateConfig
from minigptv2.heldout.pictures import grid, tile
from minigptv2.heldout.samples import HeldOut, load_heldout
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, ImageRef, ImageTokens
from minigptv2.prompt import Example
from minigptv2.shards.image_files import square
from minigptv2.tasks import TASKS, RenderedTurn, mean_scores
from minigptv2.tokenizer import Tokenizer

LOSS, EXPECTED_IOU = "loss", "expected_iou"
_DRAWS = 64
"""Boxes drawn from the model's distribution for an expected IoU; the same dice each time."""

Figures = dict[str, dict[str, float]]
"""Corpus to figure to value."""


@dataclass(frozen=True)
class Look:
    """What a look saw: mean figures by corpus, and a row of pictures by corpus, uint8 [H, W, 3]."""

    figures: Figures = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class HeldOutSlice:
    """The slice, in memory on every rank. `max_pack_tokens` limits the packs whose losses are taken."""

    def __init__(self, config: EvaluateConfig, predictor: Predictor, *, max_pack_tokens: int) -> None:
        self._config = config
        self._predictor = predictor
        self._max_pack_tokens = max_pack_tokens
        self._asked: list[HeldOut] = []
        self._taught: list[HeldOut] = []
        self._drawn: set[int] = set()
        self._digits = digit_ids(predictor.tokenizer)
        for corpus in config.corpora if config.shards else []:
            answered = max(config.samples, config.questions)
            items = load_heldout(Path(config.shards) / corpus, max(answered, config.loss_samples, 1))
            self._drawn |= {len(self._asked) + i for i in range(min(config.samples, len(items)))}
            self._asked += items[:answered]
            self._taught += items[: config.loss_samples]
        self.best = Best(config.keep_best, {item.corpus for item in self._asked}) if config.keep_best else None

    def look(self) -> Look:
        """Answer and score the slice, divided over the ranks; figures and pictures are the main rank's."""
        if not self._asked:
            return Look()
        count, rank = distributed.world_size(), distributed.rank()
        share = -(-len(self._asked) // count)
        mine = [(rank + count * i) % len(self._asked) for i in range(share)]  # a short share asks some once more
        items = [self._asked[i] for i in mine]
        requests = [item.request() for item in items]
        seen = self._encode(items)
        decoding = Decoding(self._config.max_new_tokens)
        texts = self._predictor.answer(requests, decoding, batch_size=max(1, share), seen=seen)
        answers = dict(
            pair for of_rank in distributed.gather_on_main(list(zip(mine, texts, strict=True))) for pair in of_rank
        )
        return self._seen(answers) if distributed.is_main() else Look()

    def losses(self) -> Figures:
        """Loss per token of true answers by corpus, and what IoU a box drawn as the model would would have; no answer
        is generated. The same on every rank."""
        examples = [_example(self._predictor, item) for item in self._taught]
        if not examples:
            return {}
        costs = [Cost(len(e), float(len(e)), images=e.num_images) for e in examples]
        packs = pack_step(
            costs,
            num_ranks=distributed.world_size(),
            min_packs_per_rank=1,
            max_pack_tokens=max(self._max_pack_tokens, *(cost.tokens for cost in costs)),
        )
        corpora = list(dict.fromkeys(item.corpus for item in self._taught))
        sums = torch.zeros(len(corpora), 4, dtype=torch.float64)  # loss, tokens, IoU, boxes
        model = self._predictor.model
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for pack in packs[distributed.rank() :: distributed.world_size()]:
                for i, logits, targets in self._logits(pack, examples):
                    row = sums[corpora.index(self._taught[i].corpus)]
                    row[0] += cross_entropy(logits, targets, reduction="sum").item()
                    row[1] += len(targets)
                    if TASKS[self._taught[i].turn.task].answer == "box" and self._digits:
                        row[2] += expected_iou(
                            logits, targets, self._digits, self._taught[i], self._predictor.tokenizer
                        )
                        row[3] += 1
        model.train(was_training)
        sums = distributed.sum_over_ranks(sums.to(self._device)).cpu()
        return {
            corpus: {LOSS: float(row[0] / row[1])} | ({EXPECTED_IOU: float(row[2] / row[3])} if row[3] else {})
            for corpus, row in zip(corpora, sums, strict=True)
        }

    @property
    def _device(self) -> torch.device:
        return next(self._predictor.model.parameters()).device

    def _encode(self, items: list[HeldOut]) -> ImageTokens:
        """The items' images, encoded; as many on each rank: one that has none encodes a blank one."""
        seen: ImageTokens = {}
        images = [item.image if item.image is not None else Image.new("RGB", (8, 8)) for item in items]
        distinct = [image.copy() for image in images]  # a sample asked twice is encoded twice: all ranks alike
        with torch.no_grad(), self._predictor.model.generating():
            self._predictor.image_tokens(distinct, seen)
        for image, copy in zip(images, distinct, strict=True):
            seen[ImageRef(image)] = seen[ImageRef(copy)]
        return seen

    def _logits(self, pack: Sequence[int], examples: list[Example]) -> list[tuple[int, Tensor, Tensor]]:
        """Number, logits and targets of each example of a pack."""
        model = self._predictor.model
        side = model.image_size
        images = [square(image, side) for i in pack if (image := self._taught[i].image) is not None]
        batch = collate([examples[i] for i in pack], images, side).inputs_on(self._device)
        keys = ("input_ids", "labels", "position_ids", "pixel_values")
        logits, targets, places = model.answer_logits(**{key: batch[key] for key in keys})
        segments = batch["segment_ids"][0][places]
        return [(i, logits[segments == n], targets[segments == n]) for n, i in enumerate(pack, 1)]

    def _seen(self, answers: dict[int, str]) -> Look:
        figures: dict[str, list[dict[str, float]]] = {}
        cards: dict[str, list[Image.Image]] = {}
        for i, item in enumerate(self._asked):
            scores = TASKS[item.turn.task].score(item.turn, answers[i], item.width, item.height)
            figures.setdefault(item.corpus, []).append(scores)
            if i in self._drawn:
                cards.setdefault(item.corpus, []).append(tile(item, answers[i]))
        return Look(
            {corpus: mean_scores(several) for corpus, several in figures.items()},
            {f"heldout/{corpus}": np.asarray(grid(several)) for corpus, several in cards.items()},
        )


@dataclass
class Best:
    """Whether a look is the best so far by the figure `name`, `<corpus>/<figure>`."""

    name: str
    corpora: set[str]
    value: float | None = None

    def __post_init__(self) -> None:
        corpus, _, figure = self.name.partition("/")
        if corpus not in self.corpora or not figure:
            raise ConfigError(
                f"evaluate.keep_best={self.name}: want <corpus>/<figure>, the corpus one of {sorted(self.corpora)}"
            )

    def better(self, figures: Figures) -> bool:
        """Whether `figures` beat what was seen before, which they then take the place of."""
        corpus, _, figure = self.name.partition("/")
        of_corpus = figures.get(corpus, {})
        if figure not in of_corpus:
            raise ConfigError(f"evaluate.keep_best={self.name}: {corpus} has {', '.join(of_corpus) or 'no figures'}")
        value = of_corpus[figure]
        won = self.value is None or (value < self.value if figure == LOSS else value > self.value)
        self.value = value if won else self.value
        return won


def digit_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Id to digit, of a tokenizer that gives each digit of a box an id of its own; else empty."""
    spelled = [tokenizer.encode(f"<{digit}>") for digit in range(10)]
    if len({len(ids) for ids in spelled}) != 1:
        return {}
    differing = [place for place, ids in enumerate(zip(*spelled, strict=True)) if len(set(ids)) == 10]
    if len(differing) != 1:
        return {}
    return {ids[differing[0]]: str(digit) for digit, ids in enumerate(spelled)}


def expected_iou(logits: Tensor, targets: Tensor, digits: dict[int, str], item: HeldOut, tokenizer: Tokenizer) -> float:
    """Mean IoU, 0..1, of boxes whose digits are drawn from the model's own odds given the true text before each.

    `logits` [T, vocabulary] and `targets` [T] are of a true answer that is a box. What is no box counts 0.
    """
    ids = targets.tolist()
    places = [place for place, one in enumerate(ids) if one in digits]
    order = sorted(digits, key=lambda one: digits[one])
    odds = logits[places][:, order].double().softmax(dim=-1).cpu().numpy()
    dice = np.random.default_rng(0).random((_DRAWS, len(places)))
    drawn = (dice[..., None] > odds.cumsum(axis=1)[None]).sum(axis=2).clip(max=9)
    truth = item.turn.regions[0].boxes[0]
    total = 0.0
    for numbers in drawn:
        spoken = list(ids)
        for place, number in zip(places, numbers, strict=True):
            spoken[place] = order[number]
        boxes = parse_boxes(tokenizer.decode(spoken), item.width, item.height)
        total += iou(boxes[0], truth) if boxes and _upright(boxes[0]) else 0.0
    return total / len(drawn)


def _upright(box: Box) -> bool:
    return box.x1 < box.x2 and box.y1 < box.y2


def _example(predictor: Predictor, item: HeldOut) -> Example:
    turn = RenderedTurn(item.turn.task, item.question, item.answer)
    example = predictor.encoder.encode_rendered([turn], num_images=int(TASKS[item.turn.task].shape.image))
    if example is None:
        raise ConfigError(f"evaluate.corpora: {item.corpus}, sample {item.sample} is longer than the model holds")
    return example
