"""Reads the balanced sets of GQA: compositional questions about images of Visual Genome.

Source: Hudson and Manning 2019 (cs.stanford.edu/people/dorarad/gqa). License: CC BY 4.0. Layouts: the official object
of questions (`imageId`, `question`, `answer`), and the list (`image`, `question`, `answer`), with images in `images/`
or in MiniGPT-4's `gqa_images/`. The questions of an image are separate turns, grouped in memory (`vqa.group`). Expected
questions: 943,000 / 132,062 / 12,578 (testdev).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.corpora.sources.vqa import VqaQuestion, group, shared

_FILES = {"train": "train_balanced", "val": "val_balanced", "testdev": "testdev_balanced"}


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its questions."""
    name = f"{_FILES[split]}_questions.json"
    file = raw.find(f"gqa/{name}", f"gqa/questions/{name}", f"gqa/questions1.2/{name}")
    raw.find("gqa/images", minigpt4=("gqa/gqa_images",))

    def questions() -> Iterator[VqaQuestion]:
        for key, entry in stream_json(file):
            listed = "image" in entry
            identity = str(entry.get("question_id", f"row-{key}")) if listed else key
            picture = PurePosixPath(entry["image"]).stem if listed else entry["imageId"]
            kind = (entry.get("types") or {}).get("structural") or ""
            picture, answer, kind = shared((str(picture), entry["answer"], kind))
            yield VqaQuestion(identity, picture, entry["question"], (answer,), answer_type=kind)

    def locate(raw: Raw, name: str) -> tuple[str, tuple[str, ...]]:
        return name, tuple(str(raw.root / "gqa" / place / f"{name}.jpg") for place in ("images", "gqa_images"))

    yield from group(raw, questions(), locate)


CORPORA = (
    CorpusSpec(
        name="gqa",
        title="GQA, balanced",
        drafts=drafts,
        tasks=("vqa",),
        expected={"train": 943_000, "val": 132_062, "testdev": 12_578},
        counted="questions",
        train_images=72_140,
        license="CC BY 4.0",
        stages=(1, 2, 3),
        download="questions1.2.zip, images.zip from https://cs.stanford.edu/people/dorarad/gqa/download.html in gqa/",
        size="22 GB",
    ),
)
