"""Reads Hateful Memes: whether an image with its text is hateful. For evaluation only.

Source: Kiela et al. 2020 (hatefulmemeschallenge.com). License: the challenge's own, for research. Layout: JSON lines
(`id`, `img`, `label`, `text`) and `img/`, in `hateful_memes/`, or with `hm_images/` in MiniGPT-4's `hateful_meme/`.
Expected memes: train 8,500, dev_seen 500, dev_unseen 540, test_seen 1,000, test_unseen 2,000. `dev.jsonl` of the first
phase is `dev_seen`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, encodable, one_line
from minigptv2.corpora.raw import Raw, read_lines
from minigptv2.record import Turn

YES, NO = "yes", "no"
QUESTION = 'The words in this picture are "{text}". Is it hateful?'


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per meme, with the answer `yes` or `no`.

    Its text is on one line in the question, and as it is in `source["text"]`, which the published evaluation asks.
    """
    names = [f"{split}.jsonl", *(["dev.jsonl"] if split == "dev_seen" else [])]
    official, minigpt4 = (tuple(f"{place}/{name}" for name in names) for place in ("hateful_memes", "hateful_meme"))
    file = raw.find(*official, minigpt4=minigpt4)
    seen: set[str] = set()
    for row in read_lines(file):
        key, text = str(row["id"]), one_line(row["text"])
        if key in seen:
            yield Rejected(key, "duplicate id")
        elif "label" not in row:
            yield Rejected(key, "no label")
        else:
            answer = YES if int(row["label"]) else NO
            turn = Turn("vqa", QUESTION.replace("{text}", text), (answer,), choices=(YES, NO))
            source = {"corpus": raw.corpus, "id": key, "text": encodable(row["text"])}
            places = (row["img"], f"hm_images/{row['img']}", f"hm_images/{PurePosixPath(row['img']).name}")
            yield Draft(key, (turn,), tuple(str(file.parent / place) for place in places), source)
        seen.add(key)


CORPORA = (
    CorpusSpec(
        name="hateful_memes",
        title="Hateful Memes",
        drafts=drafts,
        tasks=("vqa",),
        expected={"dev_seen": 500, "dev_unseen": 540, "test_seen": 1_000, "test_unseen": 2_000, "train": 8_500},
        counted="memes",
        license="Hateful Memes licence (research)",
        download="https://hatefulmemeschallenge.com (registration) unpacked in hateful_memes/ (dev_seen.jsonl, img/)",
        size="4 GB",
    ),
)
