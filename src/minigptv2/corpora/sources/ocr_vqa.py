"""Reads OCR-VQA: questions about book covers.

Source: Mishra et al. 2019 (ocr-vqa.github.io). License: none stated, for research. Layout: `dataset.json`, an object
of covers (`imageURL`, `questions`, `answers`, `split` 1 train, 2 val, 3 test), and the covers as `images/<key>` with
the extension of the URL. Covers with another extension (for example, all as .jpg) are found, too. GIF covers are
stored as PNG. The questions about a cover are separate turns. The paper states 207,572 covers and 1,002,146 questions,
but not by split, so the count of `dataset.json` is not checked. The copy on the Hub (howard-hou/OCR-VQA) has 166,022 /
20,731 / 20,796 covers, 23 fewer than the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.record import Turn

_SPLITS = {"train": 1, "val": 2, "test": 3}
_ENDINGS = (".jpg", ".png", ".gif", ".jpeg")


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per cover with its questions."""
    file = raw.find("ocrvqa/dataset.json", "ocr_vqa/dataset.json")
    folder = raw.find(f"{file.parent.name}/images")
    for key, entry in stream_json(file):
        if entry["split"] != _SPLITS[split]:
            continue
        if len(entry["questions"]) != len(entry["answers"]):
            yield Rejected(key, "questions and answers of different number", len(entry["questions"]))
            continue
        turns = tuple(
            Turn("vqa", question, (str(answer),), source={"id": f"{key}-{number}"})
            for number, (question, answer) in enumerate(zip(entry["questions"], entry["answers"], strict=True))
        )
        ending = PurePosixPath(urlsplit(entry["imageURL"]).path).suffix
        paths = tuple(str(folder / f"{key}{suffix}") for suffix in dict.fromkeys((ending, *_ENDINGS)))
        yield Draft(key, turns, paths, {"corpus": raw.corpus, "id": key}, separate=True)


CORPORA = (
    CorpusSpec(
        name="ocr_vqa",
        title="OCR-VQA",
        drafts=drafts,
        tasks=("vqa",),
        expected={"train": None, "val": None, "test": None},
        counted="questions",
        train_images=166_022,
        train_turns=801_550,  # 1,002,146 questions of 207,572 covers
        license="none stated",
        stages=(1, 2, 3),
        download="dataset.json and the script that loads the covers from https://ocr-vqa.github.io in ocrvqa/",
        size="8 GB",
    ),
)
