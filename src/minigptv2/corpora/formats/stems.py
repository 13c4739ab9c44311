"""Finds image files, and the files that belong to an image by their stem. Suffixes are compared without case."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from minigptv2.shards.image_files import IMAGE_EXTENSIONS

IMAGE_SUFFIXES = (*(f".{extension}" for extension in IMAGE_EXTENSIONS), ".gif", ".bmp", ".tif", ".tiff")
_NO_IMAGE = (".heic", ".heif", ".avif", ".jfif", ".jp2")
"""Images that the build refuses by name. They are listed, so that none is passed over."""


def is_image(path: str) -> bool:
    """Whether a path has the suffix of an image."""
    return os.path.splitext(path)[1].lower() in (*IMAGE_SUFFIXES, *_NO_IMAGE)


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders in a fixed order, without hidden ones. Linked folders are read once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def by_stem(files: list[Path]) -> dict[str, list[Path]]:
    """Files by their path without suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[os.path.splitext(file)[0]].append(file)
    return dict(found)


def names_of(files: list[Path]) -> str:
    """The names of a few files, as a message lists them."""
    return " and ".join(file.name for file in files)
