"""Reads RefCOCO, RefCOCO+ and RefCOCOg: objects in images of COCO, and expressions that refer to them.

Source: Kazemzadeh et al. 2014, Yu et al. 2016, Mao et al. 2016. License: Apache-2.0 (REFER), images under their Flickr
terms. Layouts: REFER's `refs(unc|umd|google).p` with `instances.json` (pickles, read without executing anything), and
the list that evaluation scripts use, `refcoco_val.json` (`img_id`, `sents`, `bbox` x, y, w, h), in `refcoco/` or in
MiniGPT-4's `refcoco_annotations/`. Of a pickle, `sent` is read, the expression in lower case without punctuation. The
splits of evaluation are read from the list if it is there, since published results ask its expressions. The objects of
an image are separate turns, and the expression is drawn per epoch. Splits without a prefix are UNC's for RefCOCO and
RefCOCO+, and UMD's for RefCOCOg. Expected objects: 42,404 / 3,811 / 1,975 / 1,810 (RefCOCO), 42,278 / 3,805 / 1,975 /
1,798 (RefCOCO+), 42,226 / 2,573 / 5,023 (RefCOCOg).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, read_plain_pickle, stream_json
from minigptv2.corpora.sources.coco import GET_IMAGES, image_id_of, image_paths, require_images
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn

SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Authors of the splits `train`, `val`, ... . `google_train`, ... are Google's."""
_PUNCTUATION = re.compile(r"[^\w\s]")


@dataclass(slots=True)
class Referred:
    """An object and its expressions. `box` is x, y, w, h in pixels."""

    id: str
    picture: str
    box: tuple[float, float, float, float]
    expressions: list[str] = field(default_factory=list)


def drafts(raw: Raw, split: str, *, folder: str, task: str) -> Iterator[Draft | Rejected]:
    """One draft per image. Each of its objects is a turn of `task` (refer or identify) with all its expressions."""
    require_images(raw)
    pictures: dict[str, list[Referred]] = {}
    seen: set[str] = set()
    for referred in referred_objects(raw, split, folder):
        if referred.id in seen:
            yield Rejected(referred.id, "duplicate id")
            continue
        seen.add(referred.id)
        pictures.setdefault(referred.picture, []).append(referred)
    for name, objects in pictures.items():
        turns = []
        for one in objects:
            x, y, w, h = one.box
            region = Region((Box(x, y, x + w, y + h),), tuple(one.expressions))  # a repeated expression counts twice
            turns.append(Turn(task, regions=(region,), source={"id": one.id}))
        number = str(image_id_of(name))
        yield Draft(number, tuple(turns), image_paths(raw, name), {"corpus": raw.corpus, "id": number}, separate=True)


def referred_objects(raw: Raw, split: str, folder: str) -> Iterator[Referred]:
    """The objects of a split in the file's order, from the file that exists."""
    file = _annotations(raw, split, folder)
    return _from_list(file) if file.suffix == ".json" else _from_refer(raw, file, split.removeprefix("google_"))


def _annotations(raw: Raw, split: str, folder: str) -> Path:
    """The file to read: for `train` and Google's splits the pickle first, for other splits the evaluation's list."""
    by_google = split.startswith("google_")
    by = "google" if by_google else SPLIT_BY[folder]
    pickles = _Candidates((f"{folder}/refs({by}).p",), (f"refcoco_annotations/{folder}/refs({by}).p",))
    if by == "umd":  # as MiniGPT-4's instructions spell it
        pickles = _Candidates(pickles.official, (*pickles.minigpt4, f"refcoco_annotations/{folder}/refs(und).p"))
    if by_google:
        return raw.find(*pickles.official, minigpt4=pickles.minigpt4)
    name = f"{folder}_{split}.json"
    places = (f"refcoco_annotations/{folder}", "refcoco_annotations", "eval_data")
    lists = _Candidates((f"{folder}/{name}",), tuple(f"{place}/{name}" for place in places))
    order = (pickles, lists) if split == "train" else (lists, pickles)
    for one in order:
        if raw.has_any((*one.official, *one.minigpt4)):
            return raw.find(*one.official, minigpt4=one.minigpt4)
    first, second = order
    raw.missing(*first.official, *second.official, minigpt4=(*first.minigpt4, *second.minigpt4))


@dataclass(frozen=True)
class _Candidates:
    """Paths of one file below the root, in the official and in MiniGPT-4's layout."""

    official: tuple[str, ...]
    minigpt4: tuple[str, ...]


def _from_refer(raw: Raw, file: Path, split: str) -> Iterator[Referred]:
    instances = raw.beside(file, "instances.json")
    boxes = {a["id"]: a["bbox"] for _, a in stream_json(instances, "annotations")}
    entries = read_plain_pickle(file)
    if not isinstance(entries, list):
        raise DataError(f"{file}: must be a list of references, got {type(entries).__name__}")
    for entry in entries:
        if entry["split"] != split:
            continue
        if entry["ann_id"] not in boxes:
            raise DataError(
                f"{file}: object {entry['ann_id']} is not in {instances.name} beside it; use both from one zip"
            )
        texts = list(map(_expression, entry["sentences"]))
        name = f"COCO_train2014_{entry['image_id']:012d}.jpg"
        yield Referred(str(entry["ref_id"]), name, tuple(boxes[entry["ann_id"]]), texts)


def _expression(sentence: dict[str, Any]) -> str:
    """The sentence in lower case without punctuation: `sent`, or made of `raw` in a copy without it."""
    sent = sentence.get("sent")
    return one_line((_PUNCTUATION.sub("", sentence["raw"]) if sent is None else sent).lower())


def _from_list(file: Path) -> Iterator[Referred]:
    """One row per expression. `img_id` is the image's name followed by the object's number.

    If `img_id` is only the image's name, objects are distinguished by their boxes, and later ones get a number.
    """
    objects: dict[tuple[str, tuple[float, ...]], Referred] = {}
    boxes_of: Counter[str] = Counter()
    for _, row in stream_json(file):
        key, box = str(row["img_id"]), tuple(row["bbox"])
        texts = [row["sents"]] if isinstance(row["sents"], str) else row["sents"]
        match = re.match(r"COCO_train2014_\d{12}", key)
        if match is None:
            raise DataError(f"{file}: img_id '{key}' is not an image of COCO's train2014")
        if (key, box) not in objects:
            boxes_of[key] += 1
            identity = key if boxes_of[key] == 1 else f"{key}-{boxes_of[key]}"
            objects[key, box] = Referred(identity, f"{match[0]}.jpg", box)
        objects[key, box].expressions += map(one_line, texts)
    yield from objects.values()


def _rows(name: str, folder: str, title: str, expected: dict[str, int | None]) -> tuple[CorpusSpec, ...]:
    rest: dict[str, Any] = {
        "license": "Apache-2.0 (annotations), Flickr terms (pictures)",
        "expected": expected,
        "counted": "objects",
        "train_images": {"refcoco": 16_994, "refcoco_plus": 16_992, "refcocog": 21_899}[name],
        "stages": (1, 2, 3),
        "download": f"{GET_IMAGES}. https://web.archive.org/web/2022/https://bvisionweb1.cs.unc.edu/licheng/referit/data/"
        f"{folder}.zip unpacked below the root ({folder}/refs(...).p, {folder}/instances.json)",
        "size": "13 GB (COCO train2014)",
    }
    return (
        CorpusSpec(name, partial(drafts, folder=folder, task="refer"), ("refer",), title=f"{title}, refer", **rest),
        CorpusSpec(
            f"{name}_identify",
            partial(drafts, folder=folder, task="identify"),
            ("identify",),
            title=f"{title}, identify",
            **rest,
        ),
    )


CORPORA = (
    *_rows(
        "refcoco",
        "refcoco",
        "RefCOCO",
        {
            "train": 42_404,
            "val": 3_811,
            "testA": 1_975,
            "testB": 1_810,
            "google_train": None,
            "google_val": None,
            "google_test": None,
        },
    ),
    *_rows("refcoco_plus", "refcoco+", "RefCOCO+", {"train": 42_278, "val": 3_805, "testA": 1_975, "testB": 1_798}),
    *_rows(
        "refcocog",
        "refcocog",
        "RefCOCOg",
        {
            "train": 42_226,
            "val": 2_573,
            "test": 5_023,
            "google_train": 44_822,
            "google_val": 5_000,
        },
    ),
)
