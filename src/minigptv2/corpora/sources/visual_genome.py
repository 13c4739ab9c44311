"""Reads the regions of Visual Genome, each with a phrase and a box, as referring expressions.

Source: Krishna et al. 2017 (homes.cs.washington.edu/~ranjay/visualgenome). License: CC BY 4.0. Layouts:
`region_descriptions.json` (images with `regions`: `phrase`, `x`, `y`, `width`, `height`), with images in `VG_100K` and
`VG_100K_2` as in the zips, or together in `images`. Regions of 16,384 px^2 and more are left out, as published: the
phrases of large regions rarely identify them. The regions of an image are separate turns. Expected regions: 5,408,689.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from minigptv2.boxes import Box
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.record import Region, Turn

MAX_AREA = 16_384
FOLDERS = ("VG_100K", "VG_100K_2", "images")


def drafts(raw: Raw, split: str, *, max_area: float) -> Iterator[Draft | Rejected]:
    """One draft per image with its regions under `max_area` square pixels."""
    file = raw.find("visual_genome/region_descriptions.json")
    raw.find(*(f"visual_genome/{folder}" for folder in FOLDERS))
    for _, entry in stream_json(file):
        turns: dict[str, Turn] = {}
        large = twice = 0
        key = str(entry.get("id") or entry.get("image_id") or entry["regions"][0]["image_id"])
        for region in entry["regions"]:
            x, y, w, h = (region[name] for name in ("x", "y", "width", "height"))
            identity = str(region["region_id"])
            if w * h >= max_area:
                large += 1
            elif identity in turns:
                twice += 1
            else:
                said = Region((Box(x, y, x + w, y + h),), (region["phrase"],))
                turns[identity] = Turn("refer", regions=(said,), source={"id": identity})
        if large:
            yield Rejected(key, "region too large", large)
        if twice:
            yield Rejected(key, "duplicate id", twice)
        if turns:
            paths = tuple(str(raw.root / "visual_genome" / folder / f"{key}.jpg") for folder in FOLDERS)
            yield Draft(key, tuple(turns.values()), paths, {"corpus": raw.corpus, "id": key}, separate=True)


CORPORA = (
    CorpusSpec(
        name="visual_genome_refer",
        title="Visual Genome regions",
        drafts=partial(drafts, max_area=MAX_AREA),
        tasks=("refer",),
        expected={"train": 5_408_689},
        counted="regions",
        train_images=108_077,
        license="CC BY 4.0",
        stages=(1, 2, 3),
        download="region_descriptions.json.zip and images.zip, images2.zip from https://homes.cs.washington.edu/~ranjay/"
        "visualgenome/api.html in visual_genome/",
        size="16 GB",
    ),
)
