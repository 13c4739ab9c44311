"""Finds the annotation files of a split of a Pascal VOC dataset, and the image of each.

VOC and CVAT have `Annotations/`, `JPEGImages/` and lists in `ImageSets/Main/`, Label Studio `Annotations/` and
`images/`, Roboflow `train/`, `valid/` and `test/`. LabelImg and Roboflow write the XML beside its image.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minigptv2.corpora.formats.splits import TRAIN, chosen, split_folders
from minigptv2.corpora.formats.stems import IMAGE_SUFFIXES, files_below, is_image
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.shards.tar_captions import decode_text

_ANNOTATIONS, _LISTS = "Annotations", Path("ImageSets", "Main")
_IMAGES = ("JPEGImages", "images", "")
_XML = ".xml"
_LABELED = re.compile(r"(\S+) (?: [01]|-1)")
"""A line of a list of one class: an id, and in two columns whether the image has it (1), only difficult ones (0), or
none (-1)."""
_DEFAULT = "default"
"""How CVAT names the only split of a task."""
_ROOT = re.compile(rb"<annotation[\s/>]")
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class VocLayout:
    """The files of a split: the folder of the dataset, that of its annotations, and its annotation files.

    `listed`: a file in `ImageSets` lists them. Otherwise they are all of their folder, which may hold images without
    one.
    """

    folder: Path
    annotations: Path
    files: list[Path]
    listed: bool


def has_annotations(path: Path) -> bool:
    """Whether a path is a folder with annotation files of Pascal VOC, of one of the known layouts."""
    if not path.is_dir():
        return False
    if (path / _ANNOTATIONS).is_dir():
        return True
    places = (path, *split_folders(path).values())
    return any(_is_annotation(file) for place in places for file in sorted(place.iterdir()) if _is_xml(file))


def find_layout(path: Path, raw: Raw) -> VocLayout:
    """The files of the split that is built. Raises `DataError` if the dataset does not have it."""
    annotations = path / _ANNOTATIONS
    lists = {file.stem: file for file in sorted((path / _LISTS).glob("*.txt")) if "_" not in file.stem}
    if list(lists) == [_DEFAULT]:
        lists = {TRAIN: lists[_DEFAULT]}
    if not annotations.is_dir():
        folder = chosen(split_folders(path), path, raw)
        return VocLayout(folder, folder, list(filter(_is_xml, files_below(folder))), listed=False)
    everything = list(filter(_is_xml, files_below(annotations)))
    listing = chosen(lists, path, raw)
    if not lists:
        return VocLayout(path, annotations, everything, listed=False)
    lines = decode_text(listing.read_bytes(), str(listing)).splitlines()
    files = list(dict.fromkeys(_listed(line.strip(), annotations) for line in lines if line.strip()))
    if left := len(set(everything) - set(files)):
        raw.note(f"{{count}} annotation files that {_LISTS}/{listing.name} does not list are not read", left)
    return VocLayout(path, annotations, files, listed=True)


def _is_xml(file: Path) -> bool:
    return file.suffix.lower() == _XML


def _is_annotation(file: Path) -> bool:
    with open(file, "rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return _ROOT.search(head.replace(b"\0", b"")) is not None  # UTF-16 has a NUL in each of these letters


def _listed(line: str, annotations: Path) -> Path:
    """The annotation file of a line: the id of an image, which a label may follow."""
    labeled = _LABELED.fullmatch(line)
    return annotations / f"{labeled[1] if labeled else line}{_XML}".lstrip("/")


def image_of(file: Path, filename: str, layout: VocLayout, raw: Raw) -> tuple[str, ...]:
    """Where the image of an annotation file is: the one that it names, else the one with its own stem.

    Paths to look for if there is none. Raises `DataError` if both exist and are different files.
    """
    given = PurePosixPath(filename.replace("\\", "/"))
    beside = file.parent.relative_to(layout.annotations)
    folders = [
        place / inner for place in (*(layout.folder / name for name in _IMAGES), raw.root) for inner in ("", beside)
    ]
    folders = list(dict.fromkeys([*folders, file.parent]))
    named = [place / name for name in (given, given.name) for place in folders if given.name]
    by_name = next(filter(os.path.isfile, named), None)
    spelled = [f"{file.stem}{one}" for suffix in IMAGE_SUFFIXES for one in (suffix, suffix.upper())]
    by_stem = next((place / name for name in spelled for place in folders if os.path.isfile(place / name)), None)
    if by_name is not None and by_stem is not None and by_name.stem != file.stem:
        raise DataError(
            f"names the image {filename}, and {by_stem.name} exists, too: correct <filename>, or remove one"
        )
    if found := by_name or by_stem:
        return (str(found),)
    looked_for = named or [place / f"{file.stem}.jpg" for place in folders]
    return str(looked_for[0]), str(looked_for[-1])


def images_without_annotation(layout: VocLayout, used: set[str]) -> list[Path]:
    """The images of a dataset without lists that no annotation belongs to."""
    if layout.listed:
        return []
    places = [place for name in _IMAGES if (place := layout.folder / name).is_dir()]
    return [file for file in files_below(places[0]) if is_image(file.name) and str(file) not in used]
