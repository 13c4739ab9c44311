"""Lists the formats of users' own data: one format is one file that says what it matches and reads its entries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minigptv2.corpora.formats import (
    caption_folder,
    csv_captions,
    image_folder,
    json_file,
    json_lines,
    table,
    voc,
    yolo,
)
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.raw import Raw
from minigptv2.errors import ConfigError, DataError, nearest

__all__ = ["FORMATS", "Format", "OwnEntry", "format_of"]


@dataclass(frozen=True)
class Format:
    """A format: its name for `--format`, what it is called in messages, and how it is recognized and read.

    `has_splits`: a dataset may be divided into splits, one of which is read (`Raw.split`). `has_classes`: boxes are of
    classes, of which some may be asked for although an image does not have them (`Raw.negatives`). `has_columns`: it
    is a table whose columns may be named (`Raw.columns`). `is_fallback`: it also matches folders of other formats, so
    it reads a path only if no other format matches. `describes_folder`: a file of it describes its folder, which names
    the corpus.
    """

    name: str
    title: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Raw], Iterator[OwnEntry]]
    has_splits: bool = False
    is_fallback: bool = False
    has_classes: bool = False
    has_columns: bool = False
    describes_folder: bool = False


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("jsonl", json_lines.TITLE, json_lines.matches, json_lines.read),
        Format("csv", csv_captions.TITLE, csv_captions.matches, csv_captions.read),
        Format("json", json_file.TITLE, json_file.matches, json_file.read, has_classes=True),
        Format("yolo", yolo.TITLE, yolo.matches, yolo.read, has_splits=True, describes_folder=True, has_classes=True),
        Format("voc", voc.TITLE, voc.matches, voc.read, has_splits=True, describes_folder=True, has_classes=True),
        Format("table", table.TITLE, table.matches, table.read, has_splits=True, has_classes=True, has_columns=True),
        Format(
            "imagefolder",
            image_folder.TITLE,
            image_folder.matches,
            image_folder.read,
            has_splits=True,
            has_classes=True,
            has_columns=True,
        ),
        Format("captions", caption_folder.TITLE, caption_folder.matches, caption_folder.read, is_fallback=True),
    )
}
"""Every format by name."""


def format_of(path: Path, name: str = "") -> Format:
    """The format of a path, or the one of this name. Raises `DataError` if none or several match."""
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        raise DataError(f"{path} does not exist")
    if name in FORMATS:
        return FORMATS[name]
    if name:
        raise ConfigError(
            f"unknown format '{name}'{nearest(name, tuple(FORMATS))} The formats are {', '.join(FORMATS)}"
        )
    found = [one for one in FORMATS.values() if one.matches(path)]
    specific = [one for one in found if not one.is_fallback] or found
    if len(specific) > 1:
        listed = ", ".join(f"{one.name} ({one.title})" for one in specific)
        raise DataError(f"{path} matches several formats, {listed}: choose one with --format")
    if not specific:
        known = ", ".join(f"{one.name} ({one.title})" for one in FORMATS.values())
        what = (
            "is a folder; pass a file in it, or a folder"
            if path.is_dir()
            else f"has the unknown extension '{path.suffix}'; pass a file or a folder"
        )
        raise DataError(f"{path} {what} of one of the formats {known}")
    return specific[0]
