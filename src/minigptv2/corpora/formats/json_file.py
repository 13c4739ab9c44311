"""Reads a JSON file: a list of conversations, or a COCO file of boxes or captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigptv2.corpora.formats import coco_captions, coco_detection
from minigptv2.corpora.formats.entry import OwnEntry, entry_of
from minigptv2.corpora.formats.text_files import read_document
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TITLE = "a COCO file of boxes or captions, or a list of conversations"


def matches(path: Path) -> bool:
    """Whether a path has the suffix of JSON."""
    return path.is_file() and path.suffix.lower() == ".json"


def read(file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """The entries of the list, or of the images of the COCO file."""
    document = read_document(file)
    parts = set(document) if isinstance(document, dict) else set()
    if raw.negatives and not parts.issuperset(coco_detection.PARTS):
        raise DataError(f"{file}: --negatives asks for categories, and this file has none")
    if isinstance(document, list):
        for number, entry in enumerate(document, 1):
            yield entry_of(f"entry {number}", number, entry, file, raw)
    elif parts.issuperset(coco_captions.PARTS) and coco_captions.has_captions(document):
        yield from coco_captions.entries(document, file, raw)
    elif parts.issuperset(coco_detection.PARTS):
        yield from coco_detection.entries(document, file, raw)
    else:
        raise DataError(
            f"{file}: must be a list of conversations, or an object with images, annotations and categories, or with "
            "images and annotations that have a caption"
        )
