"""Measures hallucinated objects: CHAIR on captions (Rohrbach et al. 2018, arXiv:1809.02156) and POPE on yes and no.

`coco_objects.txt` is the official list of synonyms of the 80 COCO objects: one line per object, its name first. The
official file has two blanks before `motor bike` and `cheesecake`. Its script divides a line at a comma and one blank,
so these two synonyms begin with a blank and no word of a caption equals them. `motor bike` is still joined to one word,
which is then no object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
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
"""Two words that name one object. `home plate` and `train track` are not COCO objects, and not a plate or a train."""
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
"""A baby or adult one is not a person."""
_VEHICLES = ("jet", "train")
"""A passenger one is not a person."""

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
"""The first match counts. As in the library of the official script, every final s is removed, also from `bus`."""


_NEVER_MATCHED = ("motor bike", "cheesecake")
"""Synonyms that the official script reads with a blank before them."""


class ObjectList(StrEnum):
    """The list of objects. `official`: as CHAIR's script reads it. `repaired`: all synonyms of the file match."""

    OFFICIAL = "official"
    REPAIRED = "repaired"


@dataclass(frozen=True)
class Chair:
    """The objects a caption mentions, with repeats, and those of them that are not in the image."""

    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]


def chair(
    caption: str,
    objects: Iterable[str],
    references: Iterable[str] = (),
    listed: ObjectList = ObjectList.OFFICIAL,
) -> Chair:
    """The objects of `caption`, compared with the annotated COCO `objects` and those of the reference captions."""
    names = _names(listed)
    present = {names.get(one, one) for one in objects}
    present |= {name for text in references for name in coco_objects(text, listed)}
    mentioned = coco_objects(caption, listed)
    return Chair(tuple(mentioned), tuple(name for name in mentioned if name not in present))


def chair_metrics(captions: Sequence[Chair]) -> dict[str, float]:
    """`chair_s`, the share of captions with a hallucinated object, and `chair_i`, the share of such objects, 0..1."""
    mentioned = sum(len(one.mentioned) for one in captions)
    wrong = sum(len(one.hallucinated) for one in captions)
    return {
        "chair_s": sum(bool(one.hallucinated) for one in captions) / len(captions),
        "chair_i": wrong / mentioned if mentioned else 0.0,
    }


def coco_objects(caption: str, listed: ObjectList = ObjectList.OFFICIAL) -> list[str]:
    """COCO's names of the objects that a caption mentions, in order, with repeats."""
    words = _joined([singular(token) for token in all_tokens(caption.lower())])
    if "toilet" in words and "seat" in words:  # a toilet seat is not a chair
        words = [word for word in words if word != "seat"]
    names = _names(listed)
    return [names[word] for word in words if word in names]


def singular(word: str) -> str:
    """The singular of a word, for names of objects."""
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
def _names(listed: ObjectList) -> dict[str, str]:
    """COCO's name of each synonym that a word can match."""
    lines = Path(__file__).with_name("coco_objects.txt").read_text().splitlines()
    rows = [line.split(", ") for line in lines]
    missing = _NEVER_MATCHED if listed is ObjectList.OFFICIAL else ()
    return {word: row[0] for row in rows for word in row if word not in missing}


def yes_or_no(answer: str) -> str:
    """`yes` or `no`, as POPE's script reads an answer: `no` if its first sentence has a word No, no or not (but not
    Not), else `yes`."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `precision`, `recall` and `f1` of yes, and the share `yes` of such answers, each 0..1."""
    pairs = list(zip(predictions, references, strict=True))
    both = sum(prediction == reference == "yes" for prediction, reference in pairs)
    predicted, true = predictions.count("yes"), references.count("yes")
    return {
        "accuracy": sum(prediction == reference for prediction, reference in pairs) / len(pairs),
        "precision": both / predicted if predicted else 0.0,
        "recall": both / true if true else 0.0,
        "f1": 2 * both / (predicted + true) if both else 0.0,
        "yes": predicted / len(pairs),
    }
