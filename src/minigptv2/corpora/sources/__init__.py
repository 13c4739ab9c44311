"""Lists the corpora that can be built into shards. A corpus is a file in this folder and an entry in the table here."""

from __future__ import annotations

from functools import partial

from minigptv2.corpora.corpus import MIXED, CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw
from minigptv2.corpora.sources import (
    cc_sbu_align,
    coco,
    flickr30k,
    gqa,
    grit,
    hateful_memes,
    iconqa,
    llava,
    nocaps,
    ocr_vqa,
    pairs,
    photographs,
    pope,
    refcoco,
    textcaps,
    toy,
    unnatural_instructions,
    visual_genome,
    vqa,
    vsr,
)

__all__ = ["CORPORA", "CorpusSpec", "Draft", "Raw", "Rejected"]


def _toy(corpus: str, train: int, task: str | None = None) -> CorpusSpec:
    sizes = {"train": train, "val": 300}
    return CorpusSpec(
        name=f"toy_{corpus}",
        title="the toy world",
        drafts=partial(toy.drafts, corpus=corpus, sizes=sizes),
        tasks=(task or corpus,),
        expected=dict(sizes),
        license="Apache-2.0",
        download="nothing to download: it is drawn",
        samples_per_shard=500,
    )


_ROWS = (
    *pairs.CORPORA,
    *grit.CORPORA,
    *coco.CORPORA,
    *textcaps.CORPORA,
    *refcoco.CORPORA,
    *visual_genome.CORPORA,
    *gqa.CORPORA,
    *vqa.CORPORA,
    *ocr_vqa.CORPORA,
    *flickr30k.CORPORA,
    *llava.CORPORA,
    *unnatural_instructions.CORPORA,
    *vsr.CORPORA,
    *iconqa.CORPORA,
    *hateful_memes.CORPORA,
    *pope.CORPORA,
    *nocaps.CORPORA,
    *cc_sbu_align.CORPORA,
    _toy("weak", 8000, "caption"),
    _toy("caption", 16000),
    _toy("grounding", 12000),
    _toy("refer", 28000),
    _toy("identify", 40000),
    _toy("vqa", 52000),
    _toy("detection", 8000),
    _toy("conversation", 6000, "mixed"),
    _toy("language", 2000),
    CorpusSpec(
        name="photographs",
        title="fifteen photographs from pip packages",
        drafts=photographs.drafts,
        tasks=MIXED,
        expected={"train": 105},
        license="see each photograph's record",
        download="nothing to download: pip install of scikit-image, scikit-learn, gradio, matplotlib",
        samples_per_shard=50,
    ),
)

CORPORA: dict[str, CorpusSpec] = {row.name: row for row in _ROWS}
"""Every corpus by name."""
