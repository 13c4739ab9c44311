"""Reads a folder of images with a caption file beside each: `a.jpg` with `a.txt`, `a.caption` or `a.json`.

Subfolders are read. The caption of a json comes before that of a text, as in tars. Images without a caption and texts
without an image are named and counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.formats.captioned_image import entry_of
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.formats.stems import by_stem, files_below, is_image, names_of
from minigptv2.corpora.own_image import as_json
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.shards.tar_captions import CAPTION_KEYS, caption_of, decode_text, facts_of

TITLE = "images with captions beside them"
_TEXTS, _JSON = (".txt", ".caption"), ".json"
_MANY = "captions"
"""A key of a json for a list of captions, beside those for one."""
_YOLO = re.compile(r"\s*(\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*)+", re.IGNORECASE)


def matches(path: Path) -> bool:
    """Whether a path is a folder in which an image has a caption file beside it."""
    return path.is_dir() and any(images and texts for images, texts in _groups(path))


def read(path: Path, raw: Raw) -> Iterator[OwnEntry]:
    """One entry per image, in the order of their paths."""
    for number, (images, texts) in enumerate(_groups(path), 1):
        files = images or texts
        name = str(files[0].relative_to(path))
        if not texts:
            for image in images:
                yield OwnEntry(str(image.relative_to(path)), None, "image without a caption file", mistake=False)
        elif not images:
            yield OwnEntry(name, None, "caption file without an image", mistake=False)
        elif len(images) > 1:
            yield OwnEntry(name, None, f"{names_of(images)} have one caption file, {texts[0].name}: rename one of them")
        else:
            try:
                captions = _captions_of(texts)
            except DataError as error:
                yield OwnEntry(name, None, str(error))
            else:
                yield entry_of(number, (str(images[0]),), captions, raw, name=name, key=name)


def _groups(folder: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """The images and the caption files of each stem."""
    files = [file for file in files_below(folder) if is_image(file.name) or _is_text(file)]
    for found in by_stem(files).values():
        yield [file for file in found if not _is_text(file)], [file for file in found if _is_text(file)]


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in (*_TEXTS, _JSON)


def _captions_of(files: list[Path]) -> list[str]:
    """The captions in the files of one stem. Raises `DataError` if two texts differ, or none has a caption."""
    texts, facts = {}, {}
    for file in files:
        if file.suffix.lower() == _JSON:
            facts = facts_of(_bytes_of(file))
        else:
            texts[file.name] = _plain(decode_text(_bytes_of(file), file.name), file.name)
    if len(set(texts.values())) > 1:
        raise DataError(f"{' and '.join(texts)} differ: remove one of them")
    if _MANY in facts:
        return _listed(facts[_MANY])
    caption = caption_of(facts) or next(iter(texts.values()), "")
    if not caption.strip():
        keys = ", ".join((*CAPTION_KEYS, _MANY))
        raise DataError("its caption is empty" if texts else f"its json has no caption; expected one of {keys}")
    return [caption.strip()]


def _listed(captions: Any) -> list[str]:
    if not isinstance(captions, list) or not captions or not all(isinstance(one, str) for one in captions):
        raise DataError(f"'{_MANY}' in its json is {as_json(captions)}; expected a list of texts")
    return captions


def _plain(text: str, name: str) -> str:
    if _YOLO.fullmatch(text):
        raise DataError(
            f"{name} has rows of numbers, which are YOLO boxes: add classes.txt with the names of the classes"
        )
    return text


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {os.strerror(error.errno or 0)}") from error
