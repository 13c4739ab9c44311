"""Lists the images of a split of a YOLO dataset with their label files, by the rules of the tools that write it.

The label file of `images/a.jpg` is `labels/a.txt`, or `a.txt` in the same folder. A label file without an image is a
mistake, because its image is lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minigptv2.corpora.formats.splits import chosen, refuse_unknown, split_folders
from minigptv2.corpora.formats.stems import IMAGE_SUFFIXES, by_stem, files_below, is_image, names_of
from minigptv2.corpora.formats.yolo_layout import NAME_LISTS, YoloLayout
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.shards.tar_captions import decode_text

_IMAGES, _LABELS = "images", "labels"
_NO_LABEL = re.compile(r"readme|notes?\.txt$|(train|val|valid|test)\.txt$", re.IGNORECASE)
"""Texts beside images that label none: lists of images, and what Roboflow and Label Studio write about a dataset."""
_HASH = re.compile(r"^[0-9a-f]{8}-")
"""How Label Studio begins the names of files that were uploaded to it."""


@dataclass(frozen=True, slots=True)
class YoloImage:
    """An image, or several with one stem: where it may be, and its label file. `problem` says why it cannot be used."""

    name: str
    paths: tuple[str, ...] = ()
    label: Path | None = None
    problem: str = ""


def images_of(layout: YoloLayout, raw: Raw) -> Iterator[YoloImage]:
    """The images of the split that is built, in a fixed order. Raises `DataError` if the dataset does not have it."""
    if not layout.sources:
        folders = split_folders(layout.folder, ("", _IMAGES))
        yield from _in_folder(layout, chosen(folders, layout.folder, raw), raw)
        return
    refuse_unknown(list(layout.sources), layout.folder, raw)
    for source in layout.sources[raw.split]:
        place = _located(layout, source)
        yield from _in_folder(layout, place, raw) if place.is_dir() else _in_list(layout, place, raw)


def _located(layout: YoloLayout, source: str) -> Path:
    """The folder or list that a dataset names. Its path may be of another machine, or begin with one `../` too many."""
    given = source.replace("\\", "/")
    tails = [given, given.removeprefix("../")]
    tails += [str(PurePosixPath(*PurePosixPath(given).parts[skip:])) for skip in range(1, len(Path(given).parts))]
    for tail in tails:
        for base in layout.bases:
            if tail and os.path.exists(base / tail):
                return base / tail
    tried = " and ".join(str(base / given) for base in layout.bases)
    raise DataError(f"{layout.folder}: {source}, which holds or lists images, does not exist; looked for {tried}")


def _in_folder(layout: YoloLayout, folder: Path, raw: Raw) -> Iterator[YoloImage]:
    """The images of a folder and its subfolders, then label files without an image."""
    files = list(files_below(folder))
    images = by_stem([file for file in files if is_image(file.name)])
    for stem, found in images.items():
        label = next(filter(None, map(_label_file, _label_stems(stem))), None)
        if len(found) > 1 and label is not None:
            problem = f"{names_of(found)} have one label file, {label.name}: rename one of them"
            yield YoloImage(_relative(found[0], layout), problem=problem)
        else:
            yield from (YoloImage(_relative(file, layout), (str(file),), label) for file in found)
    places = {Path(one).parent for stem in [str(folder / "x"), *images] for one in _label_stems(stem)}
    outside = sorted(place for place in places if place.is_dir() and not place.is_relative_to(folder))
    labels = [*files, *(file for place in outside for file in sorted(place.iterdir()))]
    stems = {one for stem in images for one in _label_stems(stem)}
    for label in filter(_is_label, labels):
        if os.path.splitext(label)[0] not in stems:
            yield _without_image(layout, label, raw)


def _without_image(layout: YoloLayout, label: Path, raw: Raw) -> YoloImage:
    """A label file whose image is not in the dataset: it may be below the root, without the prefix of Label Studio."""
    for stem in dict.fromkeys((label.stem, _HASH.sub("", label.stem))):
        for suffix in IMAGE_SUFFIXES:
            for spelled in (suffix, suffix.upper()):
                if os.path.isfile(image := raw.root / f"{stem}{spelled}"):
                    return YoloImage(image.name, (str(image),), label)
    problem = f"has no image {label.stem}.jpg (or .png, ...). Add it, set --root to the folder of the images, or remove"
    return YoloImage(_relative(label, layout), problem=f"{problem} the label file")


def _in_list(layout: YoloLayout, file: Path, raw: Raw) -> Iterator[YoloImage]:
    """The images that a text file lists, one a line."""
    lines = [line.strip() for line in decode_text(file.read_bytes(), str(file)).splitlines() if line.strip()]
    for given in dict.fromkeys(lines):
        parts = PurePosixPath(given.replace("\\", "/")).parts
        tails = [str(PurePosixPath(*parts[skip:])) for skip in range(len(parts))]
        bases = dict.fromkeys((*layout.bases, file.parent))
        paths = [base / tail for tail in tails for base in (*bases, raw.root)]
        stems = [stem for path in paths for stem in _label_stems(os.path.splitext(path)[0])]
        label = next(filter(None, map(_label_file, stems)), None)
        found = next((str(path) for path in paths if os.path.isfile(path)), None)
        if found is None:
            tried = " and ".join(dict.fromkeys((str(paths[0]), str(raw.root / tails[0]))))
            problem = f"is listed in {file.name}, and does not exist; looked for {tried}. Set --root to its folder"
            yield YoloImage(given, problem=problem)
        else:
            yield YoloImage(given, (found,), label)


def _label_stems(stem: str) -> list[str]:
    """Where the label file of an image may be, without its suffix: in `labels/` for `images/`, or beside the image."""
    parts = Path(stem).parts
    places = [place for place, part in enumerate(parts[:-1]) if part == _IMAGES]
    moved = [str(Path(*parts[:place], _LABELS, *parts[place + 1 :])) for place in reversed(places)]
    return [*moved, stem]


def _label_file(stem: str) -> Path | None:
    found = (Path(f"{stem}{suffix}") for suffix in (".txt", ".TXT"))
    return next((file for file in found if _is_label(file) and os.path.isfile(file)), None)


def _is_label(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and file.name not in NAME_LISTS and _NO_LABEL.search(file.name) is None


def _relative(file: Path, layout: YoloLayout) -> str:
    return str(file.relative_to(layout.folder)) if file.is_relative_to(layout.folder) else str(file)
