"""Encodes turns as token ids, labels and runs of image placeholders, in exactly the published token sequence.

The first turn is `<s>[INST] <Img>` + placeholders + `</Img> question  [/INST] answer</s>`, and later turns are
`<s>[INST] question  [/INST] answer</s>`. Without an image a turn is `<s>[INST] question [/INST] answer</s>` (published
code, `minigpt_base`). The parts are tokenized separately, so each begins with SentencePiece's space piece. Only answers
and their `</s>` are supervised. This module is the only owner of these literals.
"""

from __future__ import annotations

from dataclasses import dataclass
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


class PromptStyle(StrEnum):
    """The form of an inference prompt: as in training, or as in the published inference code.

    `published` begins with two `<s>` and has one space before the closing mark, where training has two.
    """

    TRAINED = "trained"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded sample. All arrays are int64 [L]. Each image is a run of `IMAGE_PLACEHOLDER` in `input_ids`.

    `num_turns` counts the turns that fit. If several question-answer pairs share an image (`share_image`), the first
    `shared` tokens are common, and `branches` are the lengths of the parts of the pairs that follow.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    task_ids: np.ndarray
    num_images: int
    num_turns: int = 1
    shared: int = 0
    branches: tuple[int, ...] = ()

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

    All examples begin with the same unsupervised tokens, because the parts of a prompt are tokenized separately.
    Raises `ValueError` if they do not.
    """
    first = examples[0]
    shared = int(np.flatnonzero(first.input_ids == IMAGE_PLACEHOLDER)[-1]) + 1
    for example in examples:
        if not np.array_equal(example.input_ids[:shared], first.input_ids[:shared]):
            raise ValueError("examples that share an image must begin with the same prompt")
        if (example.labels[: shared + 1] != IGNORE).any():
            raise ValueError("the shared part and the token after it must not be supervised")

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
    )


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

    def example(self, num_images: int, num_turns: int) -> Example:
        ids, labels, tasks = (np.array(values, dtype=np.int64) for values in (self.ids, self.labels, self.tasks))
        return Example(ids, labels, tasks, num_images, num_turns)


class PromptEncoder:
    """Encodes records for training and questions for inference with one tokenizer and image size.

    `tokens_per_image` is the length of an image's placeholder run, `max_tokens` the length of the longest example.
    """

    def __init__(self, tokenizer: Tokenizer, *, tokens_per_image: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.tokens_per_image = tokens_per_image
        self.max_tokens = max_tokens

    def encode(self, record: Record, random: Random | None = None) -> Example | None:
        """The record as a training example, or None if its first turn is longer than `max_tokens`.

        One turn of a record with separate turns is drawn from `random`, or the first one is taken without it. Trailing
        turns that do not fit are dropped completely, so that no answer, box or image is cut.
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
        complete = kept = 0
        for number, turn in enumerate(turns):
            task = task_id(turn.task)
            images = num_images if number == 0 else 0
            spaced = not published and (num_images > 0 or len(turns) > 1)
            for part in self._question_parts(turn.question, images, spaced=spaced):
                writer.add(part, task)
            writer.add([*self.tokenizer.encode(turn.answer), self.tokenizer.eos_id], task, supervised=True)
            if len(writer.ids) > self.max_tokens:
                break
            complete, kept = len(writer.ids), number + 1
        if complete == 0:
            return None
        for values in (writer.ids, writer.labels, writer.tasks):
            del values[complete:]
        return writer.example(num_images, kept)

    def encode_question(
        self,
        question: str,
        *,
        num_images: int,
        history: tuple[tuple[str, str], ...] = (),
        style: PromptStyle = PromptStyle.TRAINED,
    ) -> np.ndarray:
        """Token ids int64 [L] of a prompt: `question` after a `history` of (question, answer) pairs."""
        published = style is PromptStyle.PUBLISHED
        spaced = (num_images > 0 or bool(history)) and not published
        writer = _Writer()
        if published:
            writer.add([self.tokenizer.bos_id])
        for number, (text, answer) in enumerate((*history, (question, None))):
            for part in self._question_parts(text or "", num_images if number == 0 else 0, spaced=spaced):
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
