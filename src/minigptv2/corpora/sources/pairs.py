"""Reads LAION, CC3M and SBU: weakly labeled images from the web with their text.

Sources: Schuhmann et al. 2021 (laion.ai), Sharma et al. 2018 (ai.google.com/research/ConceptualCaptions), Ordonez et
al. 2011. Licenses: lists CC BY 4.0 (LAION), free use (CC3M), like the images (SBU). Images have their own licenses.
Layout: the tars that img2dataset writes, with the caption as `json` or as `txt`. Links stop working over time, so the
count of a download is not checked. The lists have 407 million, 3,318,333 and 1,000,000 rows (SBU's as one json about
860,000). The sets that MiniGPT-4 prepares have BLIP's captions. Its `laion/laion_dataset/` is read as `laion`, and its
`cc_sbu/cc_sbu_dataset/`, a mix of CC3M, CC12M and SBU, as `cc3m` if there is no `cc3m/` (docs/corpora.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.corpora import img2dataset as tars
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw
from minigptv2.record import Turn


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its caption. Tars are below `<corpus>/`."""
    mixed = ("cc_sbu",) if raw.corpus == "cc3m" else ()
    for file in tars.tars_of(raw, raw.corpus, minigpt4=mixed):
        for entry in tars.entries(file, raw):
            if isinstance(entry, Rejected):
                yield entry
            else:
                source = {"corpus": raw.corpus, "id": entry.key}
                if entry.facts.get("url"):
                    source["url"] = str(entry.facts["url"])
                yield Draft(entry.key, (Turn("caption", answers=(one_line(entry.caption),)),), entry.image, source)


def _row(name: str, title: str, *, license: str, listed: str, command: str, size: str) -> CorpusSpec:
    return CorpusSpec(
        name=name,
        title=title,
        drafts=drafts,
        tasks=("caption",),
        expected={"train": None},
        counted="images",
        license=license,
        stages=(1,),
        download=f"{listed}. Then in the root `{command}`",
        size=size,
        samples_per_shard=5000,
    )


CORPORA = (
    _row(
        "laion",
        "LAION-400M",
        license="CC BY 4.0 (list), pictures their own",
        listed="the metadata from https://laion.ai/blog/laion-400-open-dataset (part of it will do) in laion400m-meta/",
        command=tars.img2dataset("laion400m-meta", "laion", format="parquet", url="URL", caption="TEXT"),
        size="10 TB whole at 256 px, more at 512",
    ),
    _row(
        "cc3m",
        "CC3M",
        license="free use (list), pictures their own",
        listed="Train_GCC-training.tsv from https://ai.google.com/"
        "research/ConceptualCaptions/download, which names no columns: "
        r"`sed -i '1s/^/caption\turl\n/' Train_GCC-training.tsv`",
        command=tars.img2dataset("Train_GCC-training.tsv", "cc3m", format="tsv", url="url", caption="caption"),
        size="300 GB",
    ),
    _row(
        "sbu",
        "SBU",
        license="pictures their own",
        listed="sbu-captions-all.json of https://www.cs.rice.edu/~vo9/sbucaptions/sbu-captions-all.tar.gz",
        command=tars.img2dataset("sbu-captions-all.json", "sbu", format="json", url="image_urls", caption="captions"),
        size="100 GB",
    ),
)
