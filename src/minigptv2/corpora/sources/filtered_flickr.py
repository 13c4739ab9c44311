"""Reads MiniGPT-4's filtered Flickr30k: its own lists of grounded captions, captions to phrases, phrases to boxes.

Source: the lists of github.com/Vision-CAIR/MiniGPT-4 (dataset/README_MINIGPTv2_FINETUNE.md), made of Flickr30k
Entities. Layout: `filtered_flickr/` with `groundedcaption.json` (`image_id`, `grounded_caption`), `captiontobbox.json`
(`image_id`, `caption`, `output`), `phrasetobbox.json` (`image_id`, `phrase`, `bbox`) and `images/<id>.jpg`. Texts hold
the markup `<p>phrase</p> {<x1><y1><x2><y2>}` on the grid, so a box is known to a hundredth of the image's side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minigptv2.boxes import GRID, Box
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn
from minigptv2.tasks import segments

FOLDER = "filtered_flickr"
_INSIDE_CELL = 1e-4
"""Added to grid coordinates, so that rounding to pixels and back never gives the cell before."""

Entry = dict[str, Any]


def grounded_caption(entry: Entry) -> Turn:
    """The caption with the boxes of its phrases. Raises `DataError` with one of a few reasons."""
    caption, regions = "", []
    for part in _parts(entry["grounded_caption"]):
        if isinstance(part, str):
            caption = _joined(caption, part)
            continue
        if part[0] == "":
            raise DataError("boxes without a phrase")
        caption = _joined(caption, part[0])
        regions.append(Region(part[1], (part[0],), (len(caption) - len(part[0]), len(caption))))
    if not regions:
        raise DataError("no phrase with a box")
    return Turn("grounding", answers=(caption.rstrip(),), regions=tuple(regions))


def caption_to_phrases(entry: Entry) -> Turn:
    """The caption as the question, its phrases with boxes as the answer. Raises `DataError` if there is none."""
    found = [part for part in _parts(entry["output"]) if not isinstance(part, str) and part[0]]
    if not found:
        raise DataError("no phrase with a box")
    regions = tuple(Region(boxes, (phrase,)) for phrase, boxes in found)
    return Turn("detection", one_line(entry["caption"]), regions=regions)


def phrase_to_boxes(entry: Entry) -> Turn:
    """The phrase with all its boxes. Raises `DataError` if it has none."""
    boxes = [box for part in _parts(entry["bbox"]) if not isinstance(part, str) for box in part[1]]
    if not boxes:
        raise DataError("no phrase with a box")
    return Turn("detection", regions=(Region(tuple(boxes), (one_line(entry["phrase"]),)),))


LISTS: dict[str, tuple[str, Callable[[Entry], Turn]]] = {
    "flickr_grounded_caption": ("groundedcaption.json", grounded_caption),
    "flickr_caption_to_phrase": ("captiontobbox.json", caption_to_phrases),
    "flickr_phrase_to_box": ("phrasetobbox.json", phrase_to_boxes),
}
"""The list of each corpus, and how a row of it becomes a turn."""


def drafts(raw: Raw, file: Path, folder: Path) -> Iterator[Draft | Rejected]:
    """One draft per image, with a turn for each of its rows. All rows are held in memory: they may not be sorted."""
    write = LISTS[raw.corpus][1]
    images: dict[str, list[Turn]] = {}
    for number, entry in stream_json(file):
        key = str(entry["image_id"])
        try:
            images.setdefault(key, []).append(write(entry))
        except DataError as error:
            yield Rejected(f"{key}, row {number}", str(error))
    for key, turns in images.items():
        if turns:
            source = {"corpus": raw.corpus, "id": key}
            yield Draft(key, tuple(turns), (str(folder / f"{key}.jpg"),), source, True, (GRID, GRID))


def _parts(text: str) -> Iterator[str | tuple[str, tuple[Box, ...]]]:
    """Words without boxes, and phrases with their boxes in grid units."""
    for part in segments(text, GRID, GRID):
        if isinstance(part, str):
            yield part
        else:
            yield one_line(part.phrase), tuple(map(_inside, part.boxes))


def _inside(box: Box) -> Box:
    return Box(*(value + _INSIDE_CELL for value in (box.x1, box.y1, box.x2, box.y2)))


def _joined(caption: str, words: str) -> str:
    """The caption and more words, with each run of white space as one space and none at the beginning."""
    text = re.sub(r"\s+", " ", words.replace("\0", "").encode("utf-8", "ignore").decode())
    return caption + (text.lstrip() if not caption or caption.endswith(" ") else text)
