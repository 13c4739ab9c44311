"""Reads COCO: image paths, captions by Karpathy's split, and the objects that CHAIR needs.

Source: Lin et al. 2014, Chen et al. 2015 (cocodataset.org). Split: Karpathy and Fei-Fei 2015. License: annotations CC
BY 4.0, images under their Flickr terms. Layouts: the list `coco_karpathy_train.json` (`image`, `caption`, `image_id`)
and Karpathy's own `dataset_coco.json`, with images in `train2014/` and so on, or all in MiniGPT-4's `coco/images/`. A
sample is an image with all its captions, one of which is drawn per epoch. `train` has the images of train2014 only, as
published: Karpathy's `restval`, 30,504 images of val2014, has images of POPE, OK-VQA and VQAv2 validation. The split
`train+restval` adds it. Expected: 82,783 / 113,287 (with restval) / 5,000 / 5,000 images.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, one_line
from minigptv2.corpora.raw import Raw, read_json, stream_json
from minigptv2.errors import DataError
from minigptv2.record import Turn

LICENSE = "CC BY 4.0 (annotations), Flickr terms (pictures)"
GET_IMAGES = "http://images.cocodataset.org/zips/{train2014,val2014}.zip (and train2017, val2017) unpacked below coco/"
DOWNLOAD = (
    f"{GET_IMAGES}. coco_karpathy_{{train,val,test}}.json from https://storage.googleapis.com/"
    "sfr-vision-language-research/datasets/ or dataset_coco.json from https://cs.stanford.edu/people/karpathy/"
    "deepimagesent/caption_datasets.zip, in coco/annotations/"
)
FOLDERS = ("train2014", "val2014", "train2017", "val2017")
FLAT = "coco/images"
"""The folder of MiniGPT-4's layout that holds all images of COCO."""
WITH_RESTVAL = "train+restval"
_NAMED = re.compile(
    r"(?:COCO_(?P<folder>train2014|val2014|test2014|test2015)_)?(?P<id>\d{1,12})(?:\.jpe?g)?$", re.IGNORECASE
)


def image_paths(raw: Raw, name: str | int) -> tuple[str, ...]:
    """Paths where an image of COCO may be, most likely first. `name`: its id, or a name as used in annotations.

    A name that contains a folder (`COCO_train2014_...`) is searched there first. The same image has another name in the
    2017 folders, and a bare id may be in any folder. `coco/images` may also hold all images.
    """
    match = _NAMED.match(PurePosixPath(str(name)).name)
    if match is None:
        return tuple(str(raw.root / place / str(name)) for place in ("coco", FLAT))
    number = int(match["id"])
    first = (match["folder"] or "").lower() or PurePosixPath(str(name)).parent.name
    order = sorted({*FOLDERS, first} - {""}, key=lambda folder: (folder != first, not folder.endswith("2017"), folder))
    found = []
    for folder in order:
        file = f"{number:012d}.jpg" if folder.endswith("2017") else f"COCO_{folder}_{number:012d}.jpg"
        found += [str(raw.root / place / file) for place in (f"coco/{folder}", f"{FLAT}/{folder}", FLAT)]
    return tuple(dict.fromkeys(found))


def require_images(raw: Raw) -> None:
    """Raise `DataError` if none of COCO's image folders is below the root."""
    raw.find(*(f"{place}/{folder}" for place in ("coco", FLAT) for folder in FOLDERS), minigpt4=(FLAT,))


def captions(raw: Raw, split: str) -> Iterator[Draft | Rejected]:
    """An image with all its captions, of `train`, `train+restval`, `val` or `test`."""
    require_images(raw)
    for name, texts in captions_of_split(raw, split).items():
        number = str(image_id_of(name))
        yield Draft(
            number, (Turn("caption", answers=texts),), image_paths(raw, name), {"corpus": raw.corpus, "id": number}
        )


def captions_of_split(raw: Raw, split: str) -> dict[str, tuple[str, ...]]:
    """Captions by the name of their image (`val2014/COCO_val2014_...jpg`), in the file's order.

    A caption that two people wrote is kept twice, since it is two references in the official scores. All captions of a
    split are held in memory, since they are not sorted by image: about 210 bytes each, 0.1 GiB for train. Raises
    `DataError` if the names of the images do not tell which of them are of train2014.
    """
    name = f"coco_karpathy_{split.removesuffix('+restval')}.json"
    file = raw.find(
        *(f"{place}/{name}" for place in ("coco/annotations", "coco")),
        *(f"{place}/dataset_coco.json" for place in ("coco/annotations", "coco")),
        minigpt4=tuple(
            f"{place}/{name}"
            for place in ("coco_captions/annotations", "coco_captions", "coco_caption/annotations", "coco_caption")
        ),
    )
    found: dict[str, list[str]] = defaultdict(list)
    any_read = False
    for image, texts in _captions_in(file, split):
        any_read = True
        if split != "train" or "train" in image:
            found[image] += map(one_line, texts)
    if any_read and not found:
        raise DataError(
            f"{file}: no image's name contains 'train', so those of train2014 cannot be told from restval. "
            f"Build all with --split {WITH_RESTVAL}"
        )
    return {image: tuple(texts) for image, texts in found.items()}


def _captions_in(file: Path, split: str) -> Iterator[tuple[str, list[str]]]:
    """The name of each image of a split, and some or all of its captions, from Karpathy's own file or from the list."""
    if file.name == "dataset_coco.json":
        wanted = ("train", "restval") if split == WITH_RESTVAL else (split,)
        for _, entry in stream_json(file, "images"):
            if entry["split"] in wanted:
                texts = [sentence["raw"] for sentence in entry["sentences"]]
                yield f"{entry['filepath']}/{entry['filename']}", texts
        return
    for _, entry in stream_json(file):
        texts = [entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"]
        yield "/".join(PurePosixPath(entry["image"]).parts[-2:]), texts


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
        expected={"train": 82_783, "val": 5_000, "test": 5_000, WITH_RESTVAL: 113_287},
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
