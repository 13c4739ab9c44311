"""Reads POPE: whether an object is in the image, for present and absent objects. For evaluation only.

Source: Li et al. 2023 (github.com/RUCAIBox/POPE). License: MIT, images under their Flickr terms. Layout: JSON lines
`coco_pope_random.json` and so on (`question_id`, `image`, `text`, `label`). Some copies are lists with `question`
instead of `text`. Images are from COCO's val2014. Expected questions: 3,000 each (an older `random` has 2,910).
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, is_list, read_lines, stream_json
from minigptv2.corpora.sources.coco import GET_IMAGES, image_id_of, image_paths, require_images
from minigptv2.record import Turn


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its questions, whose answers are `yes` or `no`."""
    require_images(raw)
    name = f"coco_pope_{split}.json"
    file = raw.find(f"pope/{name}", f"pope/{name}l", f"pope/coco/{name}")
    rows = (entry for _, entry in stream_json(file)) if is_list(file) else read_lines(file)
    pictures: dict[str, list[Turn]] = {}
    for number, row in enumerate(rows):
        identity = str(row.get("question_id", number))
        text = row.get("text") or row.get("question")
        turn = Turn("vqa", text, (row["label"],), choices=("yes", "no"), source={"id": identity})
        pictures.setdefault(row["image"], []).append(turn)
    for image, turns in pictures.items():
        key = str(image_id_of(image))
        yield Draft(key, tuple(turns), image_paths(raw, image), {"corpus": raw.corpus, "id": key}, separate=True)


CORPORA = (
    CorpusSpec(
        name="pope",
        title="POPE",
        drafts=drafts,
        tasks=("vqa",),
        expected={"adversarial": 3_000, "popular": 3_000, "random": 3_000},
        counted="questions",
        license="MIT (annotations), Flickr terms (pictures)",
        download=f"{GET_IMAGES}. https://github.com/RUCAIBox/POPE/tree/main/output/coco in pope/",
        size="7 GB (COCO val2014)",
    ),
)
