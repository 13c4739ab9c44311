"""Reads VSR: whether a statement about spatial relations is true for the image. For evaluation only.

Source: Liu et al. 2023 (github.com/cambridgeltl/visual-spatial-reasoning). License: Apache-2.0. Layout: JSON lines
(`image`, `caption`, `label` 0 or 1, `relation`), zero-shot or random split, or the same rows as a list. Images are from
COCO, or in `vsr/images` or MiniGPT-4's `vsr/vsr_images`. Expected statements: zero-shot 3,489 / 340 / 1,222, random
7,680 / 1,097 / 2,195.
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, read_lines, stream_json
from minigptv2.corpora.sources.coco import GET_IMAGES, image_paths
from minigptv2.record import Turn

TRUE, FALSE = "true", "false"


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its statements as questions, whose answers are `true` or `false`."""
    kind, name = ("random", split.removeprefix("random_")) if split.startswith("random_") else ("zeroshot", split)
    places = [f"vsr/{kind}/{name}", f"vsr/data/splits/{kind}/{name}", *([f"vsr/{name}"] if kind == "zeroshot" else [])]
    file = raw.find(*(f"{place}.{ending}" for place in places for ending in ("jsonl", "json")))
    rows = read_lines(file) if file.suffix == ".jsonl" else (entry for _, entry in stream_json(file))
    pictures: dict[str, list[Turn]] = {}
    for number, row in enumerate(rows):
        source = {"id": str(number), "answer_type": str(row.get("relation", ""))}
        answer = TRUE if int(row["label"]) else FALSE
        turn = Turn("vqa", row["caption"], (answer,), choices=(TRUE, FALSE), source=source)
        pictures.setdefault(row["image"], []).append(turn)
    for image, turns in pictures.items():
        own = (str(raw.root / "vsr" / place / image) for place in ("images", "vsr_images"))
        paths = (*own, *image_paths(raw, image))
        key = image.rsplit(".", 1)[0]
        yield Draft(key, tuple(turns), paths, {"corpus": raw.corpus, "id": key}, separate=True)


CORPORA = (
    CorpusSpec(
        name="vsr",
        title="VSR",
        drafts=drafts,
        tasks=("vqa",),
        expected={
            "test": 1_222,
            "dev": 340,
            "train": 3_489,
            "random_test": 2_195,
            "random_dev": 1_097,
            "random_train": 7_680,
        },
        counted="statements",
        license="Apache-2.0 (annotations), Flickr terms (pictures)",
        download=f"{GET_IMAGES}. data/splits of https://github.com/cambridgeltl/visual-spatial-reasoning in vsr/",
        size="19 GB (COCO 2017)",
    ),
)
