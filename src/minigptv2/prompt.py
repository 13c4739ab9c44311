"""Encodes turns as token ids, labels and runs of image placeholders, in exactly the published token sequence.

The first turn is `<s>[INST] <Img>` + placeholders + `</Img> question  [/INST] answer</s>`, and later turns are
`<s>[INST] question  [/INST] answer</s>`. Without an image a turn is `<s>[INST] question [/INST] answer</s>` (published
code, `minigpt_base`). The parts are tokenized separately, so each begins with SentencePiece's space piece. Only answers
and their `</s>` are supervised. This module is the only owner of these literals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

import numpy as np

from minigptv2.batch import IGNORE
from minigptv2.record import Record
from minigptv2.tasks import RenderedTurn, render_turn, task_id
from minigptv2.tokenizer import Tokenizer

IMAGE_PLACEHOLDER = -1
"""The id in `input_ids` that an image token's embedding replaces. No vocabulary has a negative id."""

_OPEN, _CLOSE = "[INST] ", " [/INST]"
_IMAGE_OPEN, _IMAGE_CLOSE = "<Img>", "</Img> "
PROMPT_PARTS = tuple(part.strip() for part in (_OPEN, _CLOSE, _IMAGE_OPEN, _IMAGE_CLOSE))
"""What a prompt adds to a question. A text that contains one of them would be encoded with it twice."""


class PromptStyle(StrEnum):
    """The form of an inference prompt: as in training, or as in the published inference code.

    `published` begins with two `<s>` and has one space before the closing mark, where training has two.
    """

    TRAINED = "trained"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded sample. All arrays are int64 [L]. Each image is a run of `IMAGE_PLACEHOLDER` in `input_ids`.

    `num_turns` counts the turns with a supervised token, and `num_cut` the tokens that were cut from the end. If
    several question-answer pairs share an image (`share_image`), the first `shared` tokens are common, and `branches`
    are the lengths of the parts of the pairs that follow. `loss_weights` float32 [L] are the factors on the losses of
    the supervised tokens, 0 elsewhere. None: 1 for each.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    task_ids: np.ndarray
    num_images: int
    num_turns: int = 1
    shared: int = 0
    branches: tuple[int, ...] = ()
    loss_weights: np.ndarray | None = None
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """The number of supervised tokens."""
        return int((self.labels != IGNORE).sum())

    @property
    def position_ids(self) -> np.ndarray:
        """int64 [L]: 0, 1, ... The part of each pair that shares an image continues after the shared part."""
        if not self.branches:
            return np.arange(len(self), dtype=np.int64)
        parts = [np.arange(self.shared), *(np.arange(self.shared, self.shared + n) for n in self.branches)]
        return np.concatenate(parts).astype(np.int64)


def share_image(examples: list[Example]) -> Example:
    """One example from several about the same image: the tokens up to the end of the image once, then each own part.

    Without an image the examples share their first token. All examples begin with the same unsupervised tokens,
    because the parts of a prompt are tokenized separately. Each keeps its loss weights. Raises `ValueError` if the
    beginnings differ or only some examples have weights.
    """
    first = examples[0]
    shared = int(np.flatnonzero(first.input_ids == IMAGE_PLACEHOLDER)[-1]) + 1 if first.num_images else 1
    for example in examples:
        if not np.array_equal(example.input_ids[:shared], first.input_ids[:shared]):
            raise ValueError("examples that share an image must begin with the same prompt")
        if (example.labels[: shared + 1] != IGNORE).any():
            raise ValueError("the shared part and the token after it must not be supervised")

    if len({example.loss_weights is None for example in examples}) > 1:
        raise ValueError("either all or none of the examples that share an image must have loss weights")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name)[:shared], *(getattr(e, name)[shared:] for e in examples)])

    return Example(
        joined("input_ids"),
        joined("labels"),
        joined("task_ids"),
        first.num_images,
        num_turns=sum(example.num_turns for example in examples),
        shared=shared,
        branches=tuple(len(example) - shared for example in examples),
        loss_weights=None if first.loss_weights is None else joined("loss_weights"),
        num_cut=sum(example.num_cut for example in examples),
    )


def split_shared(example: Example, max_tokens: int) -> list[Example]:
    """The pairs of a shared image as few examples of at most `max_tokens` tokens, each with the image, in order.

    Every pair keeps its loss. An example without branches, or one that fits, is returned as it is. Every pair must fit
    with the image.
    """
    if len(example) <= max_tokens or not example.branches:
        return [example]
    groups: list[list[int]] = [[]]
    room = max_tokens - example.shared
    for branch, length in enumerate(example.branches):
        if groups[-1] and sum(example.branches[one] for one in groups[-1]) + length > room:
            groups.append([])
        groups[-1].append(branch)
    starts = example.shared + np.cumsum((0, *example.branches))
    parts = []
    for number, group in enumerate(groups):
        rows = np.r_[0 : example.shared, starts[group[0]] : starts[group[-1] + 1]]
        alone = len(group) == 1
        parts.append(
            replace(
                example,
                input_ids=example.input_ids[rows],
                labels=example.labels[rows],
                task_ids=example.task_ids[rows],
                loss_weights=None if example.loss_weights is None else example.loss_weights[rows],
                num_turns=len(group),
                shared=0 if alone else example.shared,
                branches=() if alone else tuple(example.branches[branch] for branch in group),
                num_cut=0 if number else example.num_cut,
            )
        )
    return parts


class _Writer:
    """Collects the ids, labels and task ids of an example."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.tasks: list[int] = []

    def add(self, ids: tuple[int, ...] | list[int], task: int = 0, *, supervised: bool = False) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if supervised else (IGNORE,) * len(ids))
        self.tasks.extend((task,) * len(ids))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids, labels and task ids as int64 [L]."""
        ids, labels, tasks = (np.array(values, dtype=np.int64) for values in (self.ids, self.labels, self.tasks))
        return ids, labels, tasks


class PromptEncoder:
    """Encodes records for training and questions for inference with one tokenizer and image size.

    `tokens_per_image` is the length of an image's placeholder run. `max_tokens` bounds the text of a training example,
    which is every token except image placeholders, `<s>` and `</s>` included. The first `max_tokens` text tokens are
    kept and the others are cut. The cut may fall anywhere, so a cut answer has no `</s>`. If it falls before the first
    answer, there is no example. None: no bound.

    The published code (`minigpt_base`, `max_txt_len: 1024`) cuts in the same way and also loses the `</s>`, but it
    counts from the first answer on, and bounds the first question together with its image by `max_context_len: 3800`.
    Here the first question counts as well, so `max_tokens` plus the image tokens is the length of the longest example.
    """

    def __init__(self, tokenizer: Tokenizer, *, tokens_per_image: int, max_tokens: int | None) -> None:
        self.tokenizer = tokenizer
        self.tokens_per_image = tokens_per_image
        self.max_tokens = max_tokens

    def encode(self, record: Record, random: Random | None = None) -> Example | None:
        """The record as a training example, or None if the first question alone fills `max_tokens`.

        One turn of a record with separate turns is drawn from `random`, or the first one is taken without it.
        """
        turns = record.turns
        if record.separate and len(turns) > 1:
            turns = (turns[random.randrange(len(turns)) if random else 0],)
        rendered = [render_turn(turn, record.width or 0, record.height or 0, random) for turn in turns]
        return self.encode_rendered(rendered, num_images=int(record.has_image))

    def encode_rendered(
        self, turns: list[RenderedTurn], *, num_images: int, style: PromptStyle = PromptStyle.TRAINED
    ) -> Example | None:
        """As `encode`, for rendered turns. Images, if any, belong to the first turn.

        `style` is the form of the prompts, for scoring answers. Training has only the trained one.
        """
        writer = _Writer()
        published = style is PromptStyle.PUBLISHED
        if published:
            writer.add([self.tokenizer.bos_id])
        answer_starts = []
        for number, turn in enumerate(turns):
            task = task_id(turn.task)
            images = num_images if number == 0 else 0
            spaced = not published and (num_images > 0 or len(turns) > 1)
            for part in self._question_parts(turn.question, images, spaced=spaced):
                writer.add(part, task)
            answer_starts.append(len(writer.ids))
            writer.add([*self.tokenizer.encode(turn.answer), self.tokenizer.eos_id], task, supervised=True)
        ids, labels, tasks = writer.arrays()
        kept = self._kept_length(ids)
        num_turns = sum(start < kept for start in answer_starts)
        if num_turns == 0:
            return None
        return Example(
            ids[:kept], labels[:kept], tasks[:kept], num_images, num_turns=num_turns, num_cut=len(ids) - kept
        )

    def _kept_length(self, ids: np.ndarray) -> int:
        """The length of the longest prefix with at most `max_tokens` text tokens."""
        text = np.flatnonzero(ids != IMAGE_PLACEHOLDER)
        if self.max_tokens is None or len(text) <= self.max_tokens:
            return len(ids)
        return int(text[self.max_tokens])

    def encode_question(
        self,
        question: str,
        *,
        num_images: int,
        history: tuple[tuple[str, str], ...] = (),
        style: PromptStyle = PromptStyle.TRAINED,
        images_by_turn: tuple[int, ...] = (),
    ) -> np.ndarray:
        """Token ids int64 [L] of a prompt: `question` after a `history` of (question, answer) pairs.

        Without `images_by_turn`, all images belong to the first turn. Raises `ValueError` if it does not state a number
        for each turn, `num_images` in all.
        """
        images_by_turn = images_by_turn or (num_images, *(0 for _ in history))
        if len(images_by_turn) != len(history) + 1 or sum(images_by_turn) != num_images:
            raise ValueError(f"{len(history) + 1} turns with {num_images} images, got images_by_turn {images_by_turn}")
        published = style is PromptStyle.PUBLISHED
        spaced = (num_images > 0 or bool(history)) and not published
        writer = _Writer()
        if published:
            writer.add([self.tokenizer.bos_id])
        for number, (text, answer) in enumerate((*history, (question, None))):
            for part in self._question_parts(text or "", images_by_turn[number], spaced=spaced):
                writer.add(part)
            if answer is not None:
                writer.add([*self.tokenizer.encode(answer), self.tokenizer.eos_id])
        return np.array(writer.ids, dtype=np.int64)

    def _question_parts(self, question: str, num_images: int, *, spaced: bool) -> list[tuple[int, ...]]:
        """The ids of a question in the chat template. `spaced` adds the second space before the closing mark."""
        close = (" " if spaced else "") + _CLOSE
        bos = (self.tokenizer.bos_id,)
        if num_images == 0:
            return [bos, self.tokenizer.encode(_OPEN + question + close)]
        parts = [bos, self.tokenizer.encode(_OPEN + _IMAGE_OPEN)]
        for number in range(num_images):
            between = _IMAGE_CLOSE + _IMAGE_OPEN if number + 1 < num_images else _IMAGE_CLOSE + question + close
            parts += [(IMAGE_PLACEHOLDER,) * self.tokens_per_image, self.tokenizer.encode(between)]
        return parts


def prompt_texts(turns: list[RenderedTurn], *, has_image: bool) -> list[str]:
    """The texts of a conversation that are tokenized, in order. A tokenizer is trained on them."""
    texts = []
    spaced = " " if has_image or len(turns) > 1 else ""
    for number, turn in enumerate(turns):
        if has_image and number == 0:
            texts += [_OPEN + _IMAGE_OPEN, _IMAGE_CLOSE + turn.question + spaced + _CLOSE]
        else:
            texts.append(_OPEN + turn.question + spaced + _CLOSE)
        texts.append(turn.answer)
    return texts
