"""LAION, CC3M and SBU: pictures of the web with the text beside them, weakly labelled.

Sources: Schuhmann et al. 2021 (laion.ai), Sharma et al. 2018 (ai.google.com/research/ConceptualCaptions), Ordonez et
al. 2011. Licences: lists CC BY 4.0 (LAION), free use (CC3M), as the pictures for SBU; pictures under their own.
Layout: the tars that img2dataset writes, with the caption as `json` or as `txt`. Links die, so no count is held
against a download; the lists have 407 million, 3,318,333 and 1,000,000 rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from minigptv2.data.sources import tars
from minigptv2.data.sources.corpus import Corpus
from minigptv2.data.sources.draft import Draft, Rejected, one_line
from minigptv2.data.sources.raw import Raw
from minigptv2.record import Turn


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """A picture with its caption. Tars lie in `<corpus>/` or one folder below."""
    for file in raw.glob(f"{raw.corpus}/*.tar", f"{raw.corpus}/*/*.tar"):
        for entry in tars.entries(file):
            if isinstance(entry, Rejected):
                yield entry
            else:
                source = {"corpus": raw.corpus, "id": entry.key}
                if entry.facts.get("url"):
                    source["url"] = str(entry.facts["url"])
                yield Draft(entry.key, (Turn("caption", answers=(one_line(entry.caption),)),), entry.image, source)


def _row(name: str, title: str, license: str, listed: str, size: str) -> Corpus:
    return Corpus(
        name=name,
        title=title,
        drafts=drafts,
        tasks=("caption",),
        expected={"train": None},
        counted="pictures",
        license=license,
        stages=(1,),
        download=f"{listed}; then img2dataset --output_format webdataset --output_folder {name}",
        size=size,
        samples_per_shard=5000,
    )


CORPORA = (
    _row("laion", "LAION-400M", "CC BY 4.0 (list), pictures their own", "the metadata from https://laion.ai/blog/"
         "laion-400-open-dataset (part of it will do)", "10 TB whole"),
    _row("cc3m", "CC3M", "free use (list), pictures their own", "Train_GCC-training.tsv from https://ai.google.com/"
         "research/ConceptualCaptions/download", "300 GB"),
    _row("sbu", "SBU", "pictures their own", "SBUCaptionedPhotoDataset.tar.gz from https://www.cs.rice.edu/~vo9/sbucaptions",
         "100 GB"),
)  # fmt: skip
