"""Reads IconQA: questions about diagrams with choices in words. For evaluation only.

Source: Lu et al. 2021 (iconqa.github.io). License: CC BY-NC-SA 4.0. Layouts: that of the zip, where
`iconqa_data/problems.json` has the questions, `pid_splits.json` in the same folder their ids by kind and split
(`choose_txt_test`), and `iconqa_data/iconqa/test/choose_txt/<id>/image.png` the images. Or one folder per question with
`data.json` and `image.png`. Or MiniGPT-4's `iconvqa/choose_text_val.json`, a list (`image_id`, `question`, `choices`,
`answer`) with `iconvqa_images/<id>/image.png`. Expected questions with choices in words: 18,946 / 6,316 / 6,316.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, read_json, stream_json
from minigptv2.errors import DataError
from minigptv2.record import Turn

_KIND = "choose_txt"


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per question. The answer is one of its choices."""
    places = ("iconqa", "iconqa/iconqa", "iconqa/iconqa_data/iconqa")
    found = raw.find(*(f"{place}/{split}/{_KIND}" for place in places), minigpt4=(f"iconvqa/choose_text_{split}.json",))
    if found.suffix == ".json":
        yield from _from_list(raw, found, split)
        return
    problems = next((f for f in ("iconqa/problems.json", "iconqa/iconqa_data/problems.json") if raw.has(f)), None)
    for key, entry in _listed(raw, problems, split) if problems else _in_folders(found):
        choices, answer = tuple(map(str, entry["choices"])), str(entry["answer"])
        chosen = int(answer) if answer.isdecimal() else -1  # the official reader accepts numbers and digits
        if not 0 <= chosen < len(choices):
            yield Rejected(key, "answer is not the number of a choice")
        else:
            paths = (str(found / key / "image.png"),)
            yield Draft(key, (_turn(entry, chosen, key),), paths, {"corpus": raw.corpus, "id": key})


def _turn(entry: dict[str, Any], chosen: int, key: str) -> Turn:
    choices = tuple(map(str, entry["choices"]))
    return Turn("vqa", entry["question"], (choices[chosen],), choices=choices, source={"id": key})


def _from_list(raw: Raw, file: Path, split: str) -> Iterator[Draft | Rejected]:
    """MiniGPT-4's list. Its `answer` is the choice itself. The number of a choice is accepted, too."""
    folder = raw.beside(file, "iconvqa_images")
    for _, entry in stream_json(file):
        key, choices, answer = str(entry["image_id"]), tuple(map(str, entry["choices"])), str(entry["answer"])
        number = int(answer) if answer.isdecimal() else -1
        chosen = choices.index(answer) if answer in choices else number
        if not 0 <= chosen < len(choices):
            yield Rejected(key, "answer is not a choice")
            continue
        paths = tuple(str(place / key / "image.png") for place in (folder, folder / split / _KIND))
        yield Draft(key, (_turn(entry, chosen, key),), paths, {"corpus": raw.corpus, "id": key})


def _in_folders(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(folder.glob("*/data.json"), key=lambda file: (len(file.parent.name), file.parent.name)):
        yield file.parent.name, read_json(file)


def _listed(raw: Raw, problems: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    document = read_json(raw.root / problems)
    file = raw.find(f"{Path(problems).parent}/pid_splits.json")
    for key in map(str, _ids(file, split)):
        if key not in document:
            raise DataError(f"{file}: problem {key} is not in {problems}; use both files from one zip")
        if document[key].get("ques_type") == _KIND:
            yield key, document[key]


def _ids(file: Path, split: str) -> list[Any]:
    """The ids of a split, of this kind of question if the file separates kinds, as the zip's file does, else of all."""
    splits = read_json(file)
    for name in (f"{_KIND}_{split}", split):
        if name in splits:
            return list(splits[name])
    raise DataError(f"{file}: must have {_KIND}_{split} or {split}, but has {', '.join(map(str, splits))}")


CORPORA = (
    CorpusSpec(
        name="iconqa",
        title="IconQA, choices in words",
        drafts=drafts,
        tasks=("vqa",),
        expected={"test": 6_316, "val": 6_316, "train": 18_946},
        counted="questions",
        license="CC BY-NC-SA 4.0",
        download="iconqa_data.zip from https://iconqa.github.io unpacked in iconqa/",
        size="0.4 GB",
    ),
)
