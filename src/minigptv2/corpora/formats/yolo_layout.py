"""Finds the class names of a YOLO dataset, and where the images of each split are stored or listed.

Ultralytics and Roboflow write a `data.yaml`, Darknet an `obj.data`, CVAT and Label Studio only a list of names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.config_values import parse_yaml
from minigptv2.corpora.formats.splits import SPLITS, split_folders
from minigptv2.corpora.own_image import as_json
from minigptv2.errors import ConfigError, DataError
from minigptv2.shards.tar_captions import decode_text
from minigptv2.typed_marks import phrase_text

_YAML = (".yaml", ".yml")
_DARKNET = "obj.data"
_NAMES = b"names:"
NAME_LISTS = ("obj.names", "classes.txt", "_darknet.labels", "predefined_classes.txt")
"""Files of class names, one a line: of Darknet and CVAT, Label Studio and LabelImg, Roboflow, LabelImg."""


@dataclass(frozen=True)
class YoloLayout:
    """A dataset: its folder, its class names by number, and its splits.

    `sources`: the folders or lists of images of each split, as the dataset names them. `bases`: the folders to which
    they may be relative. `num_keypoint_values`: numbers of a row after the box, of a dataset of poses.
    """

    folder: Path
    names: dict[int, str]
    sources: dict[str, list[str]] = field(default_factory=dict)
    bases: tuple[Path, ...] = ()
    num_keypoint_values: int = 0

    def class_of(self, number: float) -> str:
        """The name of a class. Raises `DataError` for a number that is no class."""
        name = self.names.get(int(number)) if number == int(number) else None
        if name is None:
            listed = f"the classes are {min(self.names)} to {max(self.names)}" if self.names else "there are no classes"
            raise DataError(f"class {number:g} has no name: {listed}. Add its name, or remove the row")
        return name


def find_layout(path: Path) -> YoloLayout | None:
    """The dataset that a path names, or None if it is none. Raises `DataError` for one that cannot be read."""
    if path.is_file():
        if path.suffix.lower() in _YAML:
            return _from_yaml(path)
        if path.name == _DARKNET:
            return _from_darknet(path)
        return _from_names(path.parent, path) if path.name in NAME_LISTS else None
    if not path.is_dir():
        return None
    described = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _YAML and _describes(file)]
    if len(described) > 1:
        raise DataError(f"{path} has {' and '.join(file.name for file in described)}: give one of them")
    if described:
        return _from_yaml(described[0])
    if (path / _DARKNET).is_file():
        return _from_darknet(path / _DARKNET)
    places = (path, *split_folders(path).values())
    lists = [file for place in places for name in NAME_LISTS if (file := place / name).is_file()]
    return _from_names(path, lists[0]) if lists else None


def _describes(file: Path) -> bool:
    """Whether a YAML file describes a dataset. A folder may hold others, such as settings of a run.

    Raises `DataError` for one that seems to, and cannot be read.
    """
    data = file.read_bytes()
    try:
        return isinstance(document := parse_yaml(data, str(file)), dict) and "names" in document
    except ConfigError as error:
        if _NAMES in data:
            raise DataError(str(error)) from error
        return False


def _from_yaml(file: Path) -> YoloLayout:
    try:
        document = parse_yaml(file.read_bytes(), str(file))
    except ConfigError as error:
        raise DataError(str(error)) from error
    if not isinstance(document, dict) or not document.get("names"):
        raise DataError(f"{file}: has no names; expected the names of the classes, as Ultralytics writes them")
    names = _names(document["names"], str(file))
    count = document.get("nc")
    if count is not None and count != str(len(names)):
        raise DataError(f"{file}: nc is {count}, and names has {len(names)} classes: correct one of them")
    sources = {split: _paths(found, file) for split, keys in SPLITS.items() if (found := _first(document, keys))}
    root = document.get("path")
    bases = (file.parent / root, file.parent) if isinstance(root, str) else (file.parent,)
    return YoloLayout(file.parent, names, sources, bases, _keypoint_values(document.get("kpt_shape"), file))


def _first(document: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((document[key] for key in keys if document.get(key)), None)


def _paths(value: Any, file: Path) -> list[str]:
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise DataError(f"{file}: {as_json(value)} is no path or list of paths of images")
    return paths


def _keypoint_values(shape: Any, file: Path) -> int:
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, str) and n.isdecimal() for n in shape):
        raise DataError(f"{file}: kpt_shape is {as_json(shape)}; expected [number of keypoints, values of each]")
    return int(shape[0]) * int(shape[1])


def _names(value: Any, where: str) -> dict[int, str]:
    """Class names by number, from a list or from a mapping. Raises `DataError` for a name that cannot be a phrase."""
    named = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(named, dict):
        raise DataError(f"{where}: names is {as_json(value)}; expected a list of names, or names by number")
    found = {}
    for key, name in named.items():
        if not str(key).isdecimal() or not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: class {as_json(key)} is {as_json(name)}; expected a number and its name")
        found[int(key)] = phrase_text(name.strip(), f"{where}: the name of class {key}")
    return found


def _from_darknet(file: Path) -> YoloLayout:
    """`obj.data`: lines of `key = value`, with paths relative to the folder of darknet, which is not known here."""
    pairs = [line.partition("=") for line in _lines(file)]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    given = values.get("names", NAME_LISTS[0])
    names = next((path for path in (file.parent / given, file.parent / Path(given).name) if os.path.isfile(path)), None)
    if names is None:
        raise DataError(f"{file}: names is {given}, which does not exist beside it")
    layout = _from_names(file.parent, names)
    sources = {split: [found] for split, keys in SPLITS.items() if (found := _first(values, keys))}
    return YoloLayout(file.parent, layout.names, sources or layout.sources, (file.parent,))


def _from_names(folder: Path, file: Path) -> YoloLayout:
    """A list of names, with lists of images such as `train.txt` beside it, if there are any."""
    names = _names(_lines(file), str(file))
    sources = {
        split: [f"{name}.txt"] for split, keys in SPLITS.items() for name in keys if (folder / f"{name}.txt").is_file()
    }
    return YoloLayout(folder, names, sources, (folder,))


def _lines(file: Path) -> list[str]:
    """The lines of a text file without blank ones at its end."""
    try:
        return decode_text(file.read_bytes(), str(file)).rstrip().splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
