"""Makes the entry of an image with labeled boxes, as YOLO, Pascal VOC and other detection files have it.

One detection turn per class, with all boxes of the class. The turns are separate questions about the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, Where
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.frames import CORNERS, Size
from minigptv2.corpora.raw import Raw
from minigptv2.record import Region, Turn

NO_BOXES = "image without boxes"


@dataclass(frozen=True, slots=True)
class LabeledBox:
    """A box of a class, as corners in the coordinates of its file. `name` calls it in messages."""

    phrase: str
    box: Box
    name: str


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """An image with its boxes. `key` is its id in the corpus, and `name` calls it in messages.

    `stated`, `frame` and `form` are those of a draft. `no_boxes` says why the image has none. `unboxed`: classes that
    the image has, or may have, without a box. It is no negative of them.
    """

    name: str
    key: str
    image: Where
    boxes: list[LabeledBox] = field(default_factory=list)
    stated: Size | None = None
    frame: Size | None = None
    form: str = CORNERS
    no_boxes: str = NO_BOXES
    unboxed: frozenset[str] = frozenset()


def entry_of(number: int, labeled: LabeledImage, raw: Raw, classes: list[str]) -> OwnEntry:
    """The entry of an image, the `number`th of its corpus. An image without boxes and questions is not a mistake.

    `raw.negatives` of the `classes` that the image does not have are asked for, too, drawn by its key.
    """
    by_class: dict[str, list[LabeledBox]] = {}
    for one in labeled.boxes:
        by_class.setdefault(one.phrase, []).append(one)
    absent = [name for name in dict.fromkeys(classes) if name not in by_class and name not in labeled.unboxed]
    drawn = Random(labeled.key).sample(absent, min(raw.negatives, len(absent)))
    regions = [Region(tuple(one.box for one in given), (phrase,)) for phrase, given in by_class.items()]
    regions += [Region((), (phrase,)) for phrase in drawn]
    if not regions:
        return OwnEntry(labeled.name, None, labeled.no_boxes, mistake=False)
    draft = Draft(
        f"{number:08d}",
        tuple(Turn("detection", regions=(region,)) for region in regions),
        labeled.image,
        {"corpus": raw.corpus, "id": labeled.key},
        separate=True,
        frame=labeled.frame,
        stated=labeled.stated,
        label=labeled.name,
        box_names=tuple(one.name for given in by_class.values() for one in given),
        form=labeled.form,
        upright=True,
    )
    return OwnEntry(labeled.name, draft)
