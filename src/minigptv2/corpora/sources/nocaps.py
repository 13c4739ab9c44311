"""Reads NoCaps: captions of Open Images with objects that COCO does not have. For evaluation only.

Source: Agrawal et al. 2019 (nocaps.org). License: CC BY 2.0 (images), annotations CC BY 4.0. Layout: COCO's, as
`nocaps_val_4500_captions.json` with `images` (`id`, `file_name`, `open_images_id`, `domain`) and `annotations`.
Images are named by their file name or their Open Images id. Expected images: 4,500.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, read_json
from minigptv2.record import Turn


def drafts(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """One draft per image with its captions. `source["domain"]` is in-, near- or out-domain."""
    name = "nocaps_val_4500_captions.json"
    document = read_json(raw.find(f"nocaps/{name}", f"nocaps/annotations/{name}"))
    folder = raw.find("nocaps/images", "nocaps/val")
    texts: dict[int, list[str]] = defaultdict(list)
    for annotation in document["annotations"]:
        texts[annotation["image_id"]].append(one_line(annotation["caption"]))
    for image in document["images"]:
        names = dict.fromkeys([image["file_name"], f"{image.get('open_images_id', image['id'])}.jpg"])
        key = str(image["id"])
        turn = Turn("caption", answers=tuple(texts[image["id"]]))  # one written twice is a reference twice
        source = {"corpus": raw.corpus, "id": key, "domain": str(image.get("domain", ""))}
        yield Draft(key, (turn,), tuple(str(folder / name) for name in names), source)


CORPORA = (
    CorpusSpec(
        name="nocaps",
        title="NoCaps, validation",
        drafts=drafts,
        tasks=("caption",),
        expected={"val": 4_500},
        counted="images",
        license="CC BY 2.0 (pictures), CC BY 4.0 (annotations)",
        download="nocaps_val_4500_captions.json from https://nocaps.org/download, its pictures in nocaps/images/",
        size="1.5 GB",
    ),
)
