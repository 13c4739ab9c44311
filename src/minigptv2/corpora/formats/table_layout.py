"""Finds the files of a table and its splits: one file, a folder of parts, Hugging Face's folders and `save_to_disk`."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigptv2.corpora.formats.splits import SPLITS, TRAIN, refuse_unknown
from minigptv2.corpora.formats.stems import files_below
from minigptv2.corpora.formats.table_file import SUFFIXES
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

METADATA = "metadata"
"""Stem of the table of an image folder."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_PART = re.compile(r"^(?P<split>[A-Za-z0-9_.]+?)-(?P<part>\d{5})-of-(?P<parts>\d{5})\b")
_WORDS = {
    **{name: split for split, names in SPLITS.items() for name in names},
    **{"training": "train", "dev": "val", "eval": "test", "evaluation": "test", "testing": "test"},
}
"""Words in the names of files and folders to the split that they mean."""


def is_table(file: Path) -> bool:
    """Whether a file has the suffix of a table and is not the metadata of an image folder."""
    return file.suffix.lower() in SUFFIXES and file.stem.lower() != METADATA


def has_tables(path: Path) -> bool:
    """Whether a path is a table, or a folder with tables."""
    if path.is_file():
        return file_is_table(path)
    return path.is_dir() and any(map(_is_part, files_below(path)))


def file_is_table(path: Path) -> bool:
    """Whether a file that the user names has the suffix of a table."""
    return path.suffix.lower() in SUFFIXES


def canonical(split: str) -> str:
    """The usual name of a split: `val` for `validation`."""
    return _WORDS.get(split.lower(), split)


def split_in(path: Path) -> str:
    """The split that the name of a file or of a folder above it says, or an empty text."""
    if part := _PART.match(path.name):
        return canonical(part["split"])
    for name in reversed(path.parts):
        for word in re.split(r"[^A-Za-z]+", name):
            if word.lower() in _WORDS:
                return canonical(word)
    return ""


def files_of(path: Path, raw: Raw) -> list[Path]:
    """The files of the split that is built, in order. Notes the other splits. Raises `DataError` if it has no files."""
    wanted = canonical(raw.split)
    if path.is_file():
        found = split_in(Path(path.name)) or TRAIN
        if wanted not in (found, TRAIN):
            raise DataError(f"{path} is no split '{raw.split}'; leave out --split, or pass the file of that split")
        return [path]
    if (path / _STATE).is_file():
        refuse_split([TRAIN], path, raw)
        return _saved(path, raw)
    if (path / _SPLITS).is_file():
        names = {canonical(name): name for name in _names(path / _SPLITS)}
        refuse_split(list(names), path, raw)
        return _saved(path / names[wanted], raw)
    return _parts(path, raw, wanted)


def refuse_split(splits: list[str], path: Path, raw: Raw) -> None:
    """As `refuse_unknown`, for the usual name of the split."""
    refuse_unknown(splits, path, replace(raw, split=canonical(raw.split)))


def _parts(path: Path, raw: Raw, wanted: str) -> list[Path]:
    """The parts of a split below a folder, all in one folder, by their names."""
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in filter(_is_part, files_below(path)):
        splits[split_in(file.relative_to(path))].append(file)
    if "" in splits and len(splits) > 1:
        named = ", ".join(name for name in splits if name)
        raise DataError(
            f"{path}: {splits[''][0].relative_to(path)} says no split, beside files of {named}: pass one folder or file"
        )
    if "" in splits:
        splits[TRAIN] = splits.pop("")
    refuse_split(list(splits), path, raw)
    files = splits[wanted]
    folders = sorted({str(file.parent.relative_to(path)) for file in files})
    if len(folders) > 1:
        raise DataError(f"{path}: split '{wanted}' is in several folders, {', '.join(folders[:8])}: pass one of them")
    _require_all(files, path)
    return sorted(files)


def _require_all(files: list[Path], path: Path) -> None:
    """Raise `DataError` if parts of `name-00000-of-00003` are missing."""
    groups: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if part := _PART.match(file.name):
            groups[part["split"], part["parts"]].add(int(part["part"]))
    for (name, parts), found in groups.items():
        missing = sorted(set(range(int(parts))) - found)
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {int(parts)} parts are missing, the first is "
                f"{name}-{missing[0]:05d}-of-{parts}: download them"
            )


def _is_part(file: Path) -> bool:
    return is_table(file) and not file.name.startswith("_") and not file.name.startswith("cache-")


def _saved(folder: Path, raw: Raw) -> list[Path]:
    """The files that the state of a `save_to_disk` folder lists, in its order. Notes tables that it does not list."""
    state = _document(folder / _STATE)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [str(one.get("filename")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if not names or not all(Path(name).name == name for name in names):
        raise DataError(f"{folder / _STATE}: lists no files under _data_files; save the dataset again")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: {name}, which {_STATE} lists, is missing")
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.name not in names:
            raw.note(f"{file.name} is not read, because {_STATE} does not list it")
    return [folder / name for name in names]


def _names(file: Path) -> list[str]:
    """The splits that a folder of several saved datasets lists."""
    document = _document(file)
    names = document.get("splits") if isinstance(document, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: lists no splits; save the dataset again")
    return names


def _document(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON; save the dataset again") from error
