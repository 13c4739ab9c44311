"""Defines the types of inference: requests, decoding options, replies, and cases to score with their scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigptv2.errors import ConfigError
from minigptv2.tasks import GroundedPhrase, segments

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MIN_TEMPERATURE, MIN_TOP_P = 1e-3, 1e-6
"""Smaller values are greedy in theory, but in float32 the logits overflow and the nucleus is empty."""


@dataclass(frozen=True)
class Request:
    """A question, its images (none: text only), and the earlier turns as (question, answer) pairs.

    The images belong to the first turn, as in training, unless `images_by_turn` states their number for each turn.
    """

    question: str
    images: tuple[Image.Image, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    images_by_turn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A conversation with given answers, to be scored: (question, answer) pairs, with the images in the first turn."""

    turns: tuple[tuple[str, str], ...]
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: greedily, by sampling (`temperature` > 0) or by beam search (`beams` > 1).

    Raises `ConfigError` for values outside their range or options that exclude each other.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):  # also refuses NaN
            raise ConfigError(f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE:g}, got {self.temperature}")
        if not MIN_TOP_P <= self.top_p <= 1:
            raise ConfigError(f"top_p must be {MIN_TOP_P:g} to 1, got {self.top_p}")
        if self.beams < 1 or self.max_new_tokens < 1 or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"invalid decoding options: {self}")
        if self.temperature and self.beams > 1:
            raise ConfigError("beams and temperature exclude each other: set beams=1 or temperature=0")

    def options(self) -> dict[str, Any]:
        """The options as arguments of `transformers`' `generate`."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": bool(self.temperature),
            "num_beams": self.beams,
            **sampling,
        }


@dataclass(frozen=True)
class Reply:
    """An answer, the length of its prompt, and optionally its most likely first tokens."""

    text: str
    context_length: int
    """Tokens of the prompt, image tokens included."""
    next_top: tuple[tuple[int, float], ...] = ()
    """The most likely first tokens as (id, logit), best first."""


@dataclass(frozen=True)
class Score:
    """A scored case: tokens of its sequence, the supervised ones, and the negative log likelihood of each in nats."""

    length: int
    target_ids: tuple[int, ...]
    nll: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The mean over the supervised tokens, in nats."""
        return self.total / len(self.nll)

    @property
    def total(self) -> float:
        """The sum over the supervised tokens, in nats."""
        return sum(self.nll)


class ImageRef:
    """An image as a key of a dictionary: two are equal if they refer to the same object. It keeps the image alive."""

    __slots__ = ("image",)

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __hash__(self) -> int:
        return id(self.image)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageRef) and self.image is other.image


ImageTokens = dict[ImageRef, "Tensor"]
"""Encoded images, each [tokens_per_image, D], by the image object."""


def boxes_as_json(grounded: Iterable[GroundedPhrase]) -> list[dict[str, Any]]:
    """The boxes of an answer as JSON: `phrase`, and `box` as [x1, y1, x2, y2] in pixels."""
    return [{"phrase": item.phrase, "box": [b.x1, b.y1, b.x2, b.y2]} for item in grounded for b in item.boxes]


def grounded_phrases(answer: str, size: tuple[int, int]) -> list[GroundedPhrase]:
    """The phrases of `answer` that have boxes, in pixels of an image of `size` (width, height)."""
    return [piece for piece in segments(answer, *size) if isinstance(piece, GroundedPhrase)]
