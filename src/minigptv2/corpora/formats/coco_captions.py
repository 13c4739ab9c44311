"""Reads the document of a COCO caption file: images, and annotations with captions.

The captions of an image are the accepted answers of one turn, one of which is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.formats import captioned_image
from minigptv2.corpora.formats.coco_detection import called, image_paths, new_id
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.own_entry import is_id
from minigptv2.corpora.own_image import as_json, cut, is_text
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.typed_marks import answer_text

PARTS = ("images", "annotations")
_NO_CAPTION = "image without captions"


def has_captions(document: dict[str, Any]) -> bool:
    """Whether an annotation of the document has a caption. One with a box and a caption is of a detection file."""
    annotations = document["annotations"]
    listed = annotations if isinstance(annotations, list) else []
    return any(isinstance(one, dict) and "caption" in one and "bbox" not in one for one in listed)


def entries(document: dict[str, Any], file: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per image, and one per unusable image and annotation. An image without captions is not a mistake."""
    if not all(isinstance(document[part], list) for part in PARTS):
        raise DataError(f"{file}: {' and '.join(PARTS)} must be lists")
    images: dict[Any, str] = {}
    captions: dict[Any, list[str]] = {}
    for number, entry in enumerate(document["images"], 1):
        try:
            key = new_id(entry, "file_name", images)
            images[key], captions[key] = entry["file_name"], []
        except DataError as error:
            yield OwnEntry(called("image", entry, number), None, str(error))
    for number, entry in enumerate(document["annotations"], 1):
        try:
            caption = _caption_of(entry, images)
            captions[entry["image_id"]].append(caption)
        except DataError as error:
            yield OwnEntry(called("annotation", entry, number), None, str(error))
    for number, (key, path) in enumerate(images.items(), 1):
        name = f"image {key} ({cut(path)})"
        if captions[key]:
            yield captioned_image.entry_of(
                number, image_paths(path, file, raw), captions[key], raw, name=name, key=str(key)
            )
        else:
            yield OwnEntry(name, None, _NO_CAPTION, mistake=False)


def _caption_of(entry: Any, images: dict[Any, str]) -> str:
    """The caption of an annotation. Raises `DataError` saying what to change."""
    if not isinstance(entry, dict):
        raise DataError(f"expected an object with image_id and caption, got {as_json(entry)}")
    if not is_id(entry.get("image_id")) or entry["image_id"] not in images:
        found = "its image_id is not listed in images" if "image_id" in entry else "has no image_id"
        raise DataError(f"{found}: add the image, or remove the annotation")
    if not is_text(entry.get("caption")):
        found = f"caption is {as_json(entry['caption'])}" if "caption" in entry else "has no caption"
        raise DataError(f"{found}; expected a text")
    return answer_text(entry["caption"], "caption").strip()
