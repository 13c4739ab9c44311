"""Draws the toy world: colored shapes on textured backgrounds, with annotations for every task of the paper.

Source: this file. License: as the project. Download: none. A scene has 64 x 64 px and one to three shapes of four
colors, three kinds and two sizes. In an eighth of the scenes with several shapes, two have the same color and kind and
differ only in size or position. Every sample is a function of (corpus, split, number): builds are identical on every
machine, and train and held-out scenes never share a random stream.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, drafts_of
from minigptv2.corpora.raw import Raw
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.shard_file import Sample

SIDE = 64
COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 222),
    "yellow": (240, 200, 30),
}
KINDS = {"circle": (1.0, 1.0), "bar": (1.0, 0.5), "pole": (0.5, 1.0)}
"""Half width and half height of a kind, relative to its radius. Bars are horizontal, poles vertical."""
RADII = {"small": (9.0, 11.0), "large": (15.0, 18.0)}
"""Range of half the longer side of a shape in pixels, by size word."""
NUMBERS = ("zero", "one", "two", "three")
_ALIKE_SHARE = 0.12
_SHAPES_SHARE = (0.64, 0.26, 0.10)
"""Probability of one, two and three shapes."""
_SIDE_MARGIN = 10.0
"""Minimum distance in pixels between the centers of two shapes before one is called left of the other."""


@dataclass(frozen=True)
class Shape:
    """A shape of a scene: its words, center and radius (half the longer side) in pixels."""

    color: str
    kind: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        """The bounding box in pixels, rounded to a tenth."""
        wide, high = (self.radius * share for share in KINDS[self.kind])
        return Box(*(round(c, 1) for c in (self.x - wide, self.y - high, self.x + wide, self.y + high)))

    @property
    def look(self) -> tuple[str, str]:
        """Color and kind."""
        return self.color, self.kind

    @property
    def name(self) -> str:
        """Color and kind as a phrase."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Shapes, left to right, and their image as JPEG."""

    shapes: tuple[Shape, ...]
    image: bytes

    def expressions(self, shape: Shape) -> tuple[str, ...]:
        """Phrases that refer to exactly `shape`. The first is the shortest with color and kind."""
        alike = [other for other in self.shapes if other.look == shape.look and other is not shape]
        if alike:
            return (self._tell_apart(shape, alike[0]),)
        phrases = [f"the {shape.name}", f"the {shape.size} {shape.name}"]
        if sum(other.kind == shape.kind for other in self.shapes) == 1:
            phrases.append(f"the {shape.kind}")
        if sum(other.color == shape.color for other in self.shapes) == 1:
            phrases.append(f"the {shape.color} shape")
        return tuple(phrases)

    @staticmethod
    def _tell_apart(shape: Shape, other: Shape) -> str:
        if shape.size != other.size:
            return f"the {shape.size} {shape.name}"
        if abs(shape.x - other.x) >= _SIDE_MARGIN:
            return f"the {shape.name} on the {'left' if shape.x < other.x else 'right'}"
        return f"the {shape.name} at the {'top' if shape.y < other.y else 'bottom'}"


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene: shapes that do not overlap, on a random background, as JPEG."""
    shapes = _place_shapes(rng)
    pixels = _ground(rng)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    for shape in shapes:
        color = np.clip(np.array(COLORS[shape.color]) + rng.normal(0, 8, 3), 0, 255)
        coverage = _coverage(shape, xs, ys)[..., None]
        pixels = pixels * (1 - coverage) + color * coverage
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return Scene(tuple(sorted(shapes, key=lambda shape: shape.x)), buffer.getvalue())


def _place_shapes(rng: np.random.Generator) -> list[Shape]:
    number = 1 + int(rng.choice(3, p=_SHAPES_SHARE))
    shapes: list[Shape] = []
    while len(shapes) < number:
        color, kind = str(rng.choice(list(COLORS))), str(rng.choice(list(KINDS)))
        if len(shapes) == 1 and rng.random() < _ALIKE_SHARE:
            color, kind = shapes[0].look
        elif any(shape.look == (color, kind) for shape in shapes):
            continue
        size = str(rng.choice(list(RADII)))
        placed = _find_room(rng, shapes, rng.uniform(*RADII[size]))
        if placed is None:
            shapes = []
            continue
        shapes.append(Shape(color, kind, size, *placed))
    return shapes


def _find_room(rng: np.random.Generator, shapes: list[Shape], radius: float) -> tuple[float, float, float] | None:
    for _ in range(20):
        x, y = rng.uniform(radius + 1, SIDE - radius - 1, 2)
        if all(max(abs(x - s.x), abs(y - s.y)) > radius + s.radius + 1 for s in shapes):
            return float(x), float(y), radius
    return None


def _coverage(shape: Shape, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """float [SIDE, SIDE]: the share of each pixel inside the shape, from its signed distance."""
    dx, dy, r = xs - shape.x, ys - shape.y, shape.radius
    if shape.kind == "circle":
        distance = np.hypot(dx, dy) - r
    else:
        wide, high = KINDS[shape.kind]
        distance = np.maximum(np.abs(dx) - r * wide, np.abs(dy) - r * high)
    return np.clip(0.5 - distance, 0.0, 1.0)


@cache
def _textures() -> np.ndarray:
    """float32 [48, SIDE, SIDE] in about -1..1: clouds, stripes and checks, shifted and tinted per scene."""
    rng = np.random.default_rng(7)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE]
    made = []
    for number in range(48):
        if number % 3 == 0:
            coarse = Image.fromarray(rng.normal(size=(8, 8)).astype(np.float32))
            made.append(np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        elif number % 3 == 1:
            angle, period = rng.uniform(0, np.pi), rng.uniform(5, 16)
            made.append(np.sin(2 * np.pi * (xs * np.cos(angle) + ys * np.sin(angle)) / period))
        else:
            cell = int(rng.integers(4, 12))
            made.append(((xs // cell + ys // cell) % 2) * 2.0 - 1.0)
    return np.stack(made).astype(np.float32)


def _ground(rng: np.random.Generator) -> np.ndarray:
    texture = np.roll(_textures()[rng.integers(48)], tuple(rng.integers(0, SIDE, 2)), (0, 1))
    base = rng.uniform(110, 170) + rng.normal(0, 6, 3)
    return base + texture[..., None] * rng.uniform(6, 16) + rng.normal(0, 3, (SIDE, SIDE, 1))


def samples(corpus: str, number: int, root: Path, split: str) -> Iterator[Sample]:
    """`number` samples of one toy corpus. `root` is not read."""
    for index in range(number):
        rng = np.random.default_rng((zlib.crc32(corpus.encode()), zlib.crc32(split.encode()), index))
        key = f"{split}-{index:06d}"
        source = {"corpus": f"toy_{corpus}", "id": key}
        if corpus == "language":
            yield Sample(key, Record((_language_turn(rng),), source=source))
            continue
        scene = draw_scene(rng)
        yield Sample(key, Record(tuple(_WRITERS[corpus](scene, rng)), SIDE, SIDE, source), scene.image, "jpg")


def drafts(raw: Raw, split: str, *, corpus: str, sizes: dict[str, int]) -> Iterator[Draft]:
    """`samples` as drafts, for building. `sizes` is the number of samples by split."""
    return drafts_of(samples(corpus, sizes[split], raw.root, split))


def _one_of(shapes: tuple[Shape, ...], rng: np.random.Generator) -> Shape:
    return shapes[rng.integers(len(shapes))]


def _refer_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    shape = _one_of(scene.shapes, rng)
    return [Turn("refer", regions=(Region((shape.box,), scene.expressions(shape)),))]


def _identify_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    shape = _one_of(scene.shapes, rng)
    return [Turn("identify", regions=(Region((shape.box,), scene.expressions(shape)[:1]),))]


def _vqa_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    questions = _questions(scene, rng)
    question, answer = questions[rng.integers(len(questions))]
    return [Turn("vqa", question=question, answers=(answer,))]


def _questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """One question of each kind that this scene can answer."""
    shapes = scene.shapes
    asked = [("how many shapes are there?", NUMBERS[len(shapes)])]
    kinds = [shape for shape in shapes if sum(s.kind == shape.kind for s in shapes) == 1]
    colors = [shape for shape in shapes if sum(s.color == shape.color for s in shapes) == 1]
    if kinds:
        shape = kinds[rng.integers(len(kinds))]
        asked.append((f"what color is the {shape.kind}?", shape.color))
    if colors:
        shape = colors[rng.integers(len(colors))]
        asked.append((f"what shape is the {shape.color} thing?", shape.kind))
        asked.append((f"how big is the {shape.color} {shape.kind}?", shape.size))
    if rng.random() < 0.5:  # yes or no says the least about an image: asked half as often as the others
        phrase, answer = _existence(shapes, rng)
        asked.append((f"is there a {phrase}?", answer))
    return asked


def _existence(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, str]:
    """What to ask for, by color, kind or both, and whether it is present: half of the time, if both are possible."""
    colors, kinds, looks = ({s.color for s in shapes}, {s.kind for s in shapes}, {s.name for s in shapes})
    options = (
        ([f"{c} shape" for c in COLORS if c in colors], [f"{c} shape" for c in COLORS if c not in colors]),
        (sorted(kinds), sorted(set(KINDS) - kinds)),
        (sorted(looks), [f"{c} {k}" for c in COLORS for k in KINDS if f"{c} {k}" not in looks]),
    )
    present, absent = options[rng.integers(len(options))]
    there = rng.random() < 0.5 or not absent
    chosen = present if there else absent
    return chosen[rng.integers(len(chosen))], "yes" if there else "no"


def _noun(shape: Shape) -> str:
    return f"a {shape.size} {shape.name}"


def _join(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else ", ".join(nouns[:-1]) + " and " + nouns[-1]


def _caption_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    return [Turn("caption", answers=(_join([_noun(shape) for shape in scene.shapes]),))]


def _grounding_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    caption = _join([_noun(shape) for shape in scene.shapes])
    regions, position = [], 0
    for shape in scene.shapes:
        start = caption.index(_noun(shape), position)
        position = start + len(_noun(shape))
        regions.append(Region((shape.box,), (_noun(shape),), (start, position)))
    return [Turn("grounding", answers=(caption,), regions=tuple(regions))]


def _detection_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    by_phrase: dict[str, list[Shape]] = {}
    for shape in scene.shapes:
        by_phrase.setdefault(shape.name, []).append(shape)
        by_phrase.setdefault(shape.kind, []).append(shape)
    phrase = list(by_phrase)[rng.integers(len(by_phrase))]
    return [Turn("detection", regions=(Region(tuple(shape.box for shape in by_phrase[phrase]), (phrase,)),))]


_JUNK = ("stock photo", "free download", "image 4821", "best price", "wallpaper hd", "click to enlarge")


def _weak_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Captions like those of the web: missing words, one in eight colors wrong, shapes left out, unrelated text."""
    nouns = []
    for shape in scene.shapes:
        color = str(rng.choice(list(COLORS))) if rng.random() < 0.125 else shape.color
        words = [shape.size if rng.random() < 0.4 else "", color if rng.random() < 0.8 else "", shape.kind]
        nouns.append(" ".join(word for word in words if word))
    kept = [noun for noun in nouns if rng.random() < 0.85] or nouns[:1]
    caption = " ".join(kept)
    if rng.random() < 0.4:
        junk = str(rng.choice(_JUNK))
        caption = f"{caption} {junk}" if rng.random() < 0.5 else f"{junk} {caption}"
    return [Turn("caption", answers=(caption,))]


def _conversation_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """A conversation, then tasks about the same shapes, like a chat with the stage-3 model."""
    count = len(scene.shapes)
    nouns = _join([_noun(shape) for shape in scene.shapes])
    openers = (
        ("What do you see?", f"I see {nouns}."),
        ("Hello! What is in this picture?", f"The picture shows {nouns}."),
        (
            "How many shapes are there?",
            f"There {'is one shape' if count == 1 else f'are {NUMBERS[count]} shapes'}: {nouns}.",
        ),
    )
    question, answer = openers[rng.integers(len(openers))]
    turns = [Turn("conversation", question=question, answers=(answer,))]
    others = [*_refer_turns(scene, rng), *_vqa_turns(scene, rng), *_identify_turns(scene, rng)]
    turns += [others[i] for i in rng.permutation(len(others))[:2]]
    shape = scene.shapes[0]
    if count > 1:
        answer = f"That is {_noun(shape)}."
        turns.append(Turn("conversation", question="Which one is furthest left?", answers=(answer,)))
    return turns


def _language_turn(rng: np.random.Generator) -> Turn:
    """Instructions without an image, with one correct answer each."""
    words = [str(word) for word in rng.choice([*COLORS, *KINDS], 3, replace=False)]
    a, b = int(rng.integers(0, 3)), int(rng.integers(0, 2))
    options = (
        (f"Say {words[0]} twice.", f"{words[0]} {words[0]}"),
        (f"Which word comes last: {words[0]}, {words[1]}, {words[2]}?", words[2]),
        (f"Write {words[0]} and {words[1]} in reverse order.", f"{words[1]} {words[0]}"),
        (f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b]),
        (f"Is {words[0]} a color?", "yes" if words[0] in COLORS else "no"),
    )
    question, answer = options[rng.integers(len(options))]
    return Turn("language", question=question, answers=(answer,))


_WRITERS: dict[str, Callable[[Scene, np.random.Generator], list[Turn]]] = {
    "weak": _weak_turns,
    "caption": _caption_turns,
    "grounding": _grounding_turns,
    "refer": _refer_turns,
    "identify": _identify_turns,
    "vqa": _vqa_turns,
    "detection": _detection_turns,
    "conversation": _conversation_turns,
}
CORPORA = (*_WRITERS, "language")
"""The toy corpora by name, without their `toy_` prefix."""
