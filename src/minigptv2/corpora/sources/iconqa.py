"""Reads IconQA: questions about diagrams with choices in words. For evaluation only.

Source: Lu et al. 2021 (iconqa.github.io). License: CC BY-NC-SA 4.0. Layouts: that of the zip, where
`iconqa_data/problems.json` has the questions, `pid_splits.json` in the same folder their ids by kind and split
(`choose_txt_test`), and `iconqa_data/iconqa/test/choose_txt/<id>/image.png` the images. Or one folder per question with
`data.json` and `image.png`. Expected questions with choices in words: 18,946 / 6,316 / 6,316.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, read_json
from minigptv2.errors import DataError
from minigptv2.record import Turn

_KIND = "choose_txt"


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per question. The answer is one of its choices."""
    problems = next((f for f in ("iconqa/problems.json", "iconqa/iconqa_data/problems.json") if raw.has(f)), None)
    places = ("iconqa", "iconqa/iconqa", "iconqa/iconqa_data/iconqa")
    folder = raw.find(*(f"{place}/{split}/{_KIND}" for place in places))
    for key, entry in _listed(raw, problems, split) if problems else _in_folders(folder):
        choices, answer = tuple(map(str, entry["choices"])), str(entry["answer"])
        chosen = int(answer) if answer.isdecimal() else -1  # the official reader accepts numbers and digits
        if not 0 <= chosen < len(choices):
            yield Rejected(key, "answer is not the number of a choice")
            continue
        turn = Turn("vqa", entry["question"], (choices[chosen],), choices=choices, source={"id": key})
        yield Draft(key, (turn,), (str(folder / key / "image.png"),), {"corpus": raw.corpus, "id": key})


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
