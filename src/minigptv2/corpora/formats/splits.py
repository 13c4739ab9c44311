"""Names the splits of a dataset by the folders of known tools: `train`, `valid` and `test` of Roboflow, and others."""

from __future__ import annotations

from pathlib import Path

from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TRAIN = "train"
SPLITS = {TRAIN: ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names of each split in the files of known tools."""


def split_folders(folder: Path, parents: tuple[str, ...] = ("",)) -> dict[str, Path]:
    """The folder of each split that a dataset has, below one of the `parents`."""
    places = {
        split: [place for parent in parents for name in names if (place := folder / parent / name).is_dir()]
        for split, names in SPLITS.items()
    }
    return {split: found[0] for split, found in places.items() if found}


def chosen(splits: dict[str, Path], folder: Path, raw: Raw) -> Path:
    """The folder or file of the split that is built. A dataset that is not divided is the split `train`.

    Notes the other splits, which are not read. Raises `DataError` if the dataset has no such split.
    """
    if not splits and raw.split == TRAIN:
        return folder
    refuse_unknown(list(splits), folder, raw)
    return splits[raw.split]


def refuse_unknown(splits: list[str], folder: Path, raw: Raw) -> None:
    """Raise `DataError` if the split that is built is not one of the dataset's. Notes those that are not read."""
    if raw.split not in splits:
        known = f"its splits are {', '.join(splits)}: choose one with --split" if splits else "it is not divided"
        raise DataError(f"{folder} has no split '{raw.split}': {known}")
    for other in splits:
        if other != raw.split:
            raw.note(f"split '{other}' is not read: --split {other} builds it")
