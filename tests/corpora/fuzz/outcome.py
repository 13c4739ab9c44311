"""Builds a changed file as a user would, and compares the shards and the error with what is right.

Shards are read back with `tarfile` and `json`, not with the package's reader.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.corpora.build_corpus import build
from minigptv2.corpora.own import OwnOptions, own_corpus
from minigptv2.errors import MiniGPTv2Error
from tests.corpora.fuzz.photos import Box4, Photo, is_photo
from tests.corpora.miniatures.files import put

TOLERANCE_PX = 1.0
EXACT_PX = 0.01


@dataclass
class Expected:
    """What the shards must hold of one image: boxes by phrase, or texts."""

    photo: Photo
    boxes: dict[str, list[Box4]] = field(default_factory=dict)
    tolerance_px: float = EXACT_PX
    answers: list[str] = field(default_factory=list)


@dataclass
class Case:
    """A file or a dataset, the samples that must come of it by id, and the fault that must be named, if any.

    `files`: the files of a dataset by their path in the folder `file`. Without them, `file` holds `data`.
    With a fault, the build must end with it, and with the options `retry` must keep `samples` and name what is lost.
    `retry` None: no option makes the file acceptable. `silent`: names of images that are left out without an error.
    """

    file: Path
    data: bytes
    samples: dict[str, Expected]
    fault: str = ""
    retry: OwnOptions | None = OwnOptions(skip_faults=True)
    silent: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self) -> None:
        """Write the file, or the dataset in the place of an earlier one."""
        if not self.files:
            put(self.file, self.data)
            return
        shutil.rmtree(self.file, ignore_errors=True)  # it may not exist yet
        for name, data in self.files.items():
            put(self.file / name, data)

    def __str__(self) -> str:
        texts = {name: data for name, data in self.files.items() if not is_photo(name)}
        return f"{texts or self.data!r}"[:1500]


@dataclass(frozen=True)
class Built:
    """The samples of a build by id, the names and reasons of what was left out, or the error of the build."""

    samples: dict[str, tuple[dict[str, Any], bytes]]
    dropped: str
    error: str


def problem_of(case: Case, output: Path) -> str:
    """What is wrong with the outcome of a case, or an empty text."""
    case.write()
    if not case.fault and not case.samples:
        nothing = _build(case.file, output, OwnOptions())
        return "" if "nothing to write" in nothing.error else f"expected an error, as no image is left: {nothing}"
    if not case.fault:
        return _difference(case, _build(case.file, output, OwnOptions()), named=case.silent)
    refused = _build(case.file, output, OwnOptions())
    if "unsupported layout" in refused.error:
        return f"an exception became an error without a cause: {refused.error}"
    if not refused.error:
        return f"accepted, expected an error that names {case.fault!r}"
    if case.fault not in refused.error:
        return f"the error does not name {case.fault!r}: {refused.error}"
    if case.retry is None:
        return ""
    kept = _build(case.file, output, case.retry)
    if not case.samples:
        return "" if kept.error and not kept.samples else f"kept {list(kept.samples)}, expected none"
    return _difference(case, kept, named=(case.fault, *case.silent) if case.retry.skip_faults else case.silent)


def _build(file: Path, output: Path, options: OwnOptions) -> Built:
    shutil.rmtree(output, ignore_errors=True)  # it may not exist yet
    try:
        build(own_corpus(file, options), file if file.is_dir() else file.parent, "train", output, workers=0)
    except MiniGPTv2Error as error:
        return Built({}, "", str(error) or "an error without text")
    samples: dict[str, tuple[dict[str, Any], bytes]] = {}
    for shard in sorted(output.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, data in members.items():
            if name.endswith(".json"):
                record = json.loads(data)
                stem = name.removesuffix(".json")
                images = [one for other, one in members.items() if other != name and other.startswith(f"{stem}.")]
                samples[record["source"]["id"]] = record, b"".join(images)
    dropped = output / "dropped.jsonl"
    return Built(samples, dropped.read_text() if dropped.exists() else "", "")


def _difference(case: Case, built: Built, named: tuple[str, ...]) -> str:
    if built.error:
        return f"refused, expected samples {list(case.samples)}: {built.error}"
    if set(built.samples) != set(case.samples):
        return f"samples {sorted(built.samples)}, expected {sorted(case.samples)}; dropped {built.dropped}"
    dropped = [json.loads(line) for line in built.dropped.splitlines()]
    for name in named:
        if not any(name in f"{one['key']}: {one['reason']}" for one in dropped):
            return f"dropped.jsonl does not name {name!r}: {built.dropped}"
    for key, expected in case.samples.items():
        if problem := _unlike(expected, *built.samples[key]):
            return f"sample {key}: {problem}"
    return ""


def _unlike(expected: Expected, record: dict[str, Any], image: bytes) -> str:
    photo = expected.photo
    size = (record["image"]["width"], record["image"]["height"])
    if size != (photo.width, photo.height) or not photo.is_seen_in(image):
        return f"another image than {photo.name}: {size}"
    answers = [text for turn in record["turns"] for text in turn.get("answers", [])]
    if answers != expected.answers:
        return f"answers {answers}, expected {expected.answers}"
    boxes: dict[str, list[Box4]] = {}
    for turn in record["turns"]:
        for region in turn.get("regions", []):
            boxes.setdefault(region["phrases"][0], []).extend(map(tuple, region["boxes"]))
    if set(boxes) != set(expected.boxes):
        return f"phrases {sorted(boxes)}, expected {sorted(expected.boxes)}"
    for phrase, given in boxes.items():
        right = expected.boxes[phrase]
        moved = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(given, right, strict=False)]
        if len(given) != len(right) or max(moved, default=0.0) > expected.tolerance_px:
            return f"boxes of {phrase}: {given}, expected {right} ({photo.name})"
    return ""
