"""Reads the image descriptions of MiniGPT-4's second stage: paragraphs about images of Conceptual Captions, cleaned.

Source: Zhu et al. 2023 (github.com/Vision-CAIR/MiniGPT-4, dataset/README_2_STAGE.md). License: none stated, images
their own. Layout: `cc_sbu_align/filter_cap.json` with `annotations` (`image_id`, `caption`), and `image/<id>.jpg`. No
stage of MiniGPT-v2 uses it. A sample is a conversation of one question. The paper states about 3,500 images, so the
count is not checked.
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, is_list, stream_json
from minigptv2.record import Turn

QUESTION = "Describe this image in detail."


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per description. A second one with the same text of an image is left out."""
    file = raw.find(minigpt4=("cc_sbu_align/filter_cap.json", "filter_cap.json"))
    folder = raw.beside(file, "image", "images")
    seen: dict[str, set[int]] = {}
    for _, entry in stream_json(file, None if is_list(file) else "annotations"):
        key, text = str(entry["image_id"]), entry["caption"]
        others = seen.setdefault(key, set())
        if hash(text) in others:
            yield Rejected(key, "duplicate description")
            continue
        unique = f"{key}-{len(others)}" if others else key
        others.add(hash(text))
        turn = Turn("conversation", QUESTION, (text,))
        yield Draft(unique, (turn,), (str(folder / f"{key}.jpg"),), {"corpus": raw.corpus, "id": key})


CORPORA = (
    CorpusSpec(
        name="cc_sbu_align",
        title="MiniGPT-4's image descriptions",
        drafts=drafts,
        tasks=("conversation",),
        expected={"train": None},
        counted="conversations",
        license="none stated",
        purpose="own recipes",
        download="the archive that https://github.com/Vision-CAIR/MiniGPT-4/blob/main/dataset/README_2_STAGE.md links, "
        "unpacked as cc_sbu_align/ (filter_cap.json, image/)",
        size="0.2 GB",
    ),
)
