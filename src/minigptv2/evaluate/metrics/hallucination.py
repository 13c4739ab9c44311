"""Hallucinated objects: CHAIR over captions (Rohrbach et al. 2018, arXiv:1809.02156) and POPE's yes and no.

`coco_objects.txt` is the official list of what the 80 COCO objects are called, a line per object, its name first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minigptv2.evaluate.metrics.texts import all_tokens

_DOUBLE_WORDS = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "laptop computer",
    "stove top oven",
    "home plate",
    "train track",
)
"""Two words that are one thing. `home plate` and `train track` are none of COCO's, and neither plate nor train."""
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
"""A baby or an adult one is no person."""
_VEHICLES = ("jet", "train")
"""A passenger one is no person."""

_SINGULAR = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("^scissors$", "scissors"),
        ("children$", "child"),
        ("men$", "man"),
        ("people$", "person"),
        ("geese$", "goose"),
        ("oxen$", "ox"),
        ("(collie|doggie)s$", r"\1"),
        ("oes$", "o"),
        ("buses$", "bus"),
        ("mice$", "mouse"),
        ("(x|ch|ss|sh)es$", r"\1"),
        ("([^aeiouy])ies$", r"\1y"),
        ("([aeo]l)ves$", r"\1f"),
        ("([nlw]i)ves$", r"\1fe"),
        ("s$", ""),
    )
]
"""First match counts. As in the official script's library, every last s goes, that of `bus` and `tennis` too."""


@dataclass(frozen=True)
class Chair:
    """Objects a caption speaks of (with repeats), and those of them that are not in the image."""

    spoken: tuple[str, ...]
    hallucinated: tuple[str, ...]


def chair(caption: str, objects: Iterable[str], references: Iterable[str] = ()) -> Chair:
    """What `caption` speaks of beside what is there: annotated COCO `objects` and those the reference captions name."""
    names = _names()
    there = {names.get(one, one) for one in objects} | {name for text in references for name in coco_objects(text)}
    spoken = coco_objects(caption)
    return Chair(tuple(spoken), tuple(name for name in spoken if name not in there))


def chair_figures(captions: Sequence[Chair]) -> dict[str, float]:
    """`chair_s`: share of captions with a hallucinated object; `chair_i`: share of spoken objects that are; 0..1.

    `length` is not here: words are the caller's to count.
    """
    spoken = sum(len(one.spoken) for one in captions)
    wrong = sum(len(one.hallucinated) for one in captions)
    return {
        "chair_s": sum(bool(one.hallucinated) for one in captions) / len(captions),
        "chair_i": wrong / spoken if spoken else 0.0,
    }


def coco_objects(caption: str) -> list[str]:
    """COCO's names of the objects a caption speaks of, in order, with repeats."""
    words = _joined([singular(token) for token in all_tokens(caption.lower())])
    if "toilet" in words and "seat" in words:  # its seat is no chair
        words = [word for word in words if word != "seat"]
    names = _names()
    return [names[word] for word in words if word in names]


def singular(word: str) -> str:
    """The word's singular, as far as the names of objects need it."""
    for pattern, replacement in _SINGULAR:
        if pattern.search(word):
            return pattern.sub(replacement, word)
    return word


def _joined(words: list[str]) -> list[str]:
    pairs, joined, position = _pairs(), [], 0
    while position < len(words):
        pair = " ".join(words[position : position + 2])
        joined.append(pairs.get(pair, words[position]))
        position += 2 if pair in pairs else 1
    return joined


@cache
def _pairs() -> dict[str, str]:
    pairs = {pair: pair for pair in _DOUBLE_WORDS}
    pairs |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    pairs |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
    return pairs | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@cache
def _names() -> dict[str, str]:
    lines = Path(__file__).with_name("coco_objects.txt").read_text().splitlines()
    rows = [line.split(", ") for line in lines]
    return {word: row[0] for row in rows for word in row}


def yes_or_no(answer: str) -> str:
    """What an answer to a yes-or-no question says, as POPE's script reads it: `no` if a No, no or not, but no Not,
    is in its first sentence, else `yes`."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_figures(said: Sequence[str], meant: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `precision`, `recall` and `f1` of yes, and the share of answers that are `yes`; 0..1 each."""
    pairs = list(zip(said, meant, strict=True))
    both = sum(s == m == "yes" for s, m in pairs)
    spoken, true = sum(s == "yes" for s in said), sum(m == "yes" for m in meant)
    return {
        "accuracy": sum(s == m for s, m in pairs) / len(pairs),
        "precision": both / spoken if spoken else 0.0,
        "recall": both / true if true else 0.0,
        "f1": 2 * both / (spoken + true) if both else 0.0,
        "yes": spoken / len(pairs),
    }
