"""Reads fifteen real photographs from pip packages, annotated by hand for all six tasks.

Source: the installed distributions scikit-image, scikit-learn, gradio and matplotlib. The images are read from their
installed location and are not copied into this repository. License: see `photographs.json` for each image. The
annotations (captions, boxes in pixels, questions, answers, conversations) were made by this project. Download: `pip
install` of those packages. Expected: 15 photographs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.corpora.draft import Draft, drafts_of
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.shard_file import Sample

ANNOTATIONS = "photographs.json"


def load_annotations() -> list[dict[str, Any]]:
    """The annotation file's entries, one per photograph."""
    return json.loads((resources.files("minigptv2.corpora.sources") / ANNOTATIONS).read_text())


def samples(root: Path, split: str) -> Iterator[Sample]:
    """One sample per photograph and task, and one per conversation. `root` is not read, and there is one split."""
    for entry in load_annotations():
        image = _image_bytes(entry)
        for task, turns in _turns_by_task(entry).items():
            source = {"corpus": "photographs", "id": entry["name"], "license": entry["license"]}
            record = Record(tuple(turns), entry["width"], entry["height"], source)
            yield Sample(f"{entry['name']}-{task}", record, image, Path(entry["path"]).suffix.removeprefix("."))


def drafts(raw: Raw, split: str) -> Iterator[Draft]:
    """`samples` as drafts, for building."""
    return drafts_of(samples(raw.root, split))


def _image_bytes(entry: dict[str, Any]) -> bytes:
    package, path = entry["package"], entry["path"]
    try:
        file = Path(str(metadata.distribution(package).locate_file(path)))
    except metadata.PackageNotFoundError as error:
        raise DataError(f"photograph '{entry['name']}' comes with {package}: pip install {package}") from error
    if not file.is_file():
        version = metadata.version(package)
        raise DataError(f"photograph '{entry['name']}': {package} {version} has no {path}; see constraints.txt")
    return file.read_bytes()


def _turns_by_task(entry: dict[str, Any]) -> dict[str, list[Turn]]:
    regions = [
        Region(tuple(Box(*map(float, box)) for box in thing["boxes"]), tuple(thing["expressions"] or [thing["phrase"]]))
        for thing in entry["objects"]
    ]
    single = [
        region
        for region, thing in zip(regions, entry["objects"], strict=True)
        if len(region.boxes) == 1 and thing["expressions"]
    ]
    phrases = [
        Region(region.boxes, (thing["phrase"],)) for region, thing in zip(regions, entry["objects"], strict=True)
    ]
    return {
        "caption": [Turn("caption", answers=tuple(entry["captions"]))],
        "grounding": [_grounding(entry, regions)],
        "refer": [Turn("refer", regions=(region,)) for region in single],
        "identify": [Turn("identify", regions=(region,)) for region in single],
        "detection": [Turn("detection", regions=(region,)) for region in phrases],
        "vqa": [Turn("vqa", f"{q['question']}?", tuple(q["answers"])) for q in entry["questions"]],
        "conversation": [Turn("conversation", t["question"], (t["answer"],)) for t in entry["conversation"]],
    }


def _grounding(entry: dict[str, Any], regions: list[Region]) -> Turn:
    text = entry["grounded_caption"]["text"]
    spoken = []
    for span in entry["grounded_caption"]["spans"]:
        start = text.index(span["phrase"])
        boxes = regions[span["object"]].boxes
        spoken.append(Region(boxes, (span["phrase"],), (start, start + len(span["phrase"]))))
    spoken.sort(key=lambda region: region.span or (0, 0))
    return Turn("grounding", answers=(text,), regions=tuple(spoken))
