"""Counts the boxes of a file that leave their image, and names the mistake that would explain them.

A single box may be a slip. A share above `MAX_SHARE` is more likely a file whose numbers mean something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from minigptv2.boxes import Box
from minigptv2.corpora.frames import CENTERS, CORNERS, SIZES, Frame

MAX_SHARE = 0.01
"""The largest share of boxes that may leave their image by more than `TOLERANCE_PX`."""
TOLERANCE_PX = 1.0
_NAMES_SHOWN = 8
_LIKELY = 0.5
"""A cause is named if it explains at least this share of the boxes."""


@dataclass(frozen=True, slots=True)
class GivenBox:
    """A box as a file gives it: as corners in the coordinates of the file, the form of its numbers, and its frame."""

    name: str
    box: Box
    form: str
    frame: Frame


def overshoot(box: Box, frame: Frame) -> float:
    """By how many pixels a box leaves its image, at least 0."""
    return max(0.0, -box.x1, -box.y1, box.x2 - frame.width, box.y2 - frame.height)


def _fits(box: Box, frame: Frame) -> bool:
    return box.x2 - box.x1 >= 1 and box.y2 - box.y1 >= 1 and overshoot(box, frame) <= TOLERANCE_PX


def _numbers(given: GivenBox) -> tuple[float, float, float, float]:
    """The four numbers of a box as its file has them."""
    box, width, height = given.box, given.box.x2 - given.box.x1, given.box.y2 - given.box.y1
    if given.form == CENTERS:
        return box.x1 + width / 2, box.y1 + height / 2, width, height
    return (box.x1, box.y1, width, height) if given.form == SIZES else (box.x1, box.y1, box.x2, box.y2)


_FORMS: dict[str, Callable[[float, float, float, float], Box]] = {
    CORNERS: Box,
    SIZES: lambda x, y, width, height: Box(x, y, x + width, y + height),
    CENTERS: lambda x, y, width, height: Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2),
}


def _in_form(form: str) -> Callable[[GivenBox], Box]:
    return lambda given: given.frame.to_image(_FORMS[form](*_numbers(given)))


def _swap_axes(given: GivenBox) -> Box:
    return given.frame.to_image(Box(given.box.y1, given.box.x1, given.box.y2, given.box.x2))


def _scale(unit: float) -> Callable[[GivenBox], Box]:
    def read(given: GivenBox) -> Box:
        across, down = given.frame.width / unit, given.frame.height / unit
        box = given.box
        return Box(box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)

    return read


_CAUSES: dict[str, Callable[[GivenBox], Box]] = {
    **{form: _in_form(form) for form in _FORMS},
    "y before x": _swap_axes,
    "pixels of the image": lambda given: given.box,
    "values from 0 to 1": _scale(1),
    "values from 0 to 100": _scale(100),
    "values from 0 to 1000": _scale(1000),
}
"""Other meanings of four numbers, the most frequent mistake first."""


@dataclass
class BoxCensus:
    """Numbers of boxes: in all, that fit as given, that leave their image, and that would fit with another meaning."""

    total: int = 0
    fit: int = 0
    leaving: int = 0
    names: list[str] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)

    def add(self, boxes: Iterable[GivenBox]) -> None:
        """Count more boxes."""
        for given in boxes:
            box = given.frame.to_image(given.box)
            self.total += 1
            self.fit += _fits(box, given.frame)
            if overshoot(box, given.frame) > TOLERANCE_PX:
                self.leaving += 1
                if len(self.names) < _NAMES_SHOWN and given.name not in self.names:
                    self.names.append(given.name)
            for words, read in _CAUSES.items():
                if words != given.form and _fits(read(given), given.frame):
                    self.explained[words] += 1

    @property
    def is_suspicious(self) -> bool:
        """Whether more boxes than can be slips leave their image."""
        return self.leaving > MAX_SHARE * self.total

    def problem(self) -> str:
        """How many boxes leave their image, which, and what would explain them."""
        more = ", ..." if self.leaving > len(self.names) else ""
        share = f"{100 * self.leaving / self.total:.3g} %"
        return (
            f"{self.leaving} of {self.total} boxes ({share}) leave the image by more than a pixel: "
            f"{_join(self.names)}{more}. {self.cause()}"
        )

    def cause(self) -> str:
        """The likely cause, with the share of boxes that it would explain. Empty if nothing is wrong."""
        if self.fit == self.total:
            return ""
        likely = max(_CAUSES, key=lambda words: self.explained[words])
        count = self.explained[likely]
        if count <= self.fit or count < _LIKELY * self.total:
            return "No other meaning of the numbers explains most of them"
        read, given = (f"{100 * number / self.total:.3g} %" for number in (count, self.fit))
        return f"Likely cause: the numbers are {likely}. Read so, {read} of the boxes fit, and {given} as given"


def _join(names: list[str]) -> str:
    """`annotations 2, 3, 4` for names that differ only in their number."""
    heads = {name.rpartition(" ")[0] for name in names}
    if len(names) > 1 and len(heads) == 1 and (head := heads.pop()):
        return f"{head}s {', '.join(name.rpartition(' ')[2] for name in names)}"
    return ", ".join(names)
