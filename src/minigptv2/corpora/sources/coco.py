"""Reads COCO: image paths, captions by Karpathy's split, and the objects that CHAIR needs.

Source: Lin et al. 2014, Chen et al. 2015 (cocodataset.org). Split: Karpathy and Fei-Fei 2015. License: annotations CC
BY 4.0, images under their Flickr terms. Layouts: the list `coco_karpathy_train.json` (`image`, `caption`, `image_id`)
and Karpathy's own `dataset_coco.json`. A sample is an image with all its captions, one of which is drawn per epoch.
Expected: 113,287 / 5,000 / 5,000 images (566,747 / 25,010 / 25,010 captions).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, read_json, stream_json
from minigptv2.record import Turn

LICENSE = "CC BY 4.0 (annotations), Flickr terms (pictures)"
GET_IMAGES = "http://images.cocodataset.org/zips/{train2014,val2014}.zip (and train2017, val2017) unpacked below coco/"
DOWNLOAD = (
    f"{GET_IMAGES}. coco_karpathy_{{train,val,test}}.json from https://storage.googleapis.com/"
    "sfr-vision-language-research/datasets/ or dataset_coco.json from https://cs.stanford.edu/people/karpathy/"
    "deepimagesent/caption_datasets.zip, in coco/annotations/"
)
FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_NAMED = re.compile(r"(?:COCO_(?P<folder>train2014|val2014|test2014|test2015)_)?(?P<id>\d{1,12})(?:\.jpe?g)?$")


def image_paths(raw: Raw, name: str | int) -> tuple[str, ...]:
    """Paths where an image of COCO may be, most likely first. `name`: its id, or a name as used in annotations.

    A name that contains a folder (`COCO_train2014_...`) is searched there first. The same image has another name in the
    2017 folders, and a bare id may be in any folder.
    """
    match = _NAMED.match(PurePosixPath(str(name)).name)
    if match is None:
        return (str(raw.root / "coco" / str(name)),)
    number = int(match["id"])
    first = match["folder"] or PurePosixPath(str(name)).parent.name
    order = sorted({*FOLDERS, first} - {""}, key=lambda folder: (folder != first, not folder.endswith("2017"), folder))
    found = []
    for folder in order:
        file = f"{number:012d}.jpg" if folder.endswith("2017") else f"COCO_{folder}_{number:012d}.jpg"
        found += [str(raw.root / place / folder / file) for place in ("coco", "coco/images")]
    return tuple(found)


def require_images(raw: Raw) -> None:
    """Raise `DataError` if none of COCO's image folders is below the root."""
    raw.find(*(f"{place}/{folder}" for place in ("coco", "coco/images") for folder in FOLDERS))


def captions(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """An image with all its captions, of `train` (with Karpathy's `restval`), `val` or `test`."""
    require_images(raw)
    for name, texts in captions_of_split(raw, split).items():
        number = str(image_id_of(name))
        yield Draft(
            number, (Turn("caption", answers=texts),), image_paths(raw, name), {"corpus": raw.corpus, "id": number}
        )


def captions_of_split(raw: Raw, split: str) -> dict[str, tuple[str, ...]]:
    """Captions by the name of their image (`val2014/COCO_val2014_...jpg`), in the file's order.

    A caption that two people wrote is kept twice, since it is two references in the official scores. All captions of a
    split are held in memory, since they are not sorted by image: about 210 bytes each, 0.1 GiB for train.
    """
    file = raw.find(
        *(f"{place}/coco_karpathy_{split}.json" for place in ("coco/annotations", "coco")),
        *(f"{place}/dataset_coco.json" for place in ("coco/annotations", "coco")),
    )
    found: dict[str, list[str]] = defaultdict(list)
    if file.name == "dataset_coco.json":
        wanted = ("train", "restval") if split == "train" else (split,)
        for _, entry in stream_json(file, "images"):
            if entry["split"] in wanted:
                texts = [sentence["raw"] for sentence in entry["sentences"]]
                found[f"{entry['filepath']}/{entry['filename']}"] += map(one_line, texts)
    else:
        for _, entry in stream_json(file):
            texts = [entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"]
            name = "/".join(PurePosixPath(entry["image"]).parts[-2:])
            found[name] += map(one_line, texts)
    return {name: tuple(texts) for name, texts in found.items()}


def image_id_of(name: str | int) -> int:
    """The id of an image of COCO from any of its usual names. Raises `ValueError` for another name."""
    match = _NAMED.match(PurePosixPath(str(name)).name)
    if match is None:
        raise ValueError(f"'{name}' is not the name of an image of COCO")
    return int(match["id"])


def chair(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """`captions`, with the names of all objects in the image as `source["objects"]`, joined by `|`."""
    objects: dict[int, set[str]] = defaultdict(set)
    for year in ("train2014", "val2014"):
        document = read_json(raw.find(f"coco/annotations/instances_{year}.json"))
        names = {category["id"]: category["name"] for category in document["categories"]}
        for annotation in document["annotations"]:
            objects[annotation["image_id"]].add(names[annotation["category_id"]])
    for draft in captions(raw, split):
        if isinstance(draft, Draft):
            draft.source["objects"] = "|".join(sorted(objects[int(draft.key)]))
        yield draft


CORPORA = (
    CorpusSpec(
        name="coco_caption",
        title="COCO Captions",
        drafts=captions,
        tasks=("caption",),
        expected={"train": 113_287, "val": 5_000, "test": 5_000},
        counted="images",
        license=LICENSE,
        stages=(1, 2, 3),
        download=DOWNLOAD,
        size="19 GB",
    ),
    CorpusSpec(
        name="coco_chair",
        title="COCO objects and captions, for CHAIR",
        drafts=chair,
        tasks=("caption",),
        expected={"val": 5_000, "test": 5_000},
        counted="images",
        license=LICENSE,
        download=f"{DOWNLOAD}. http://images.cocodataset.org/annotations/annotations_trainval2014.zip in coco/",
        size="19 GB",
    ),
)
