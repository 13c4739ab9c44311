"""Writes miniatures of caption corpora: COCO, TextCaps, NoCaps, Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.corpora.miniatures.files import coco, coco_name, jpeg, put
from tests.corpora.miniatures.regions import flickr


def coco_karpathy_list(root: Path) -> None:
    """The list that MiniGPT-4's `caption_datasets.py` reads, of which it keeps images with `train` in their name."""
    coco(root, "train2014/9", "val2014/25")
    rows = [
        {"image": coco_name(9), "caption": "A dog  runs.", "image_id": "coco_9"},
        {"image": coco_name(9), "caption": "Ein Hund läuft 🐕.", "image_id": "coco_9"},
        {"image": coco_name(9), "caption": "A dog runs.", "image_id": "coco_9"},
        {"image": coco_name(25, "val2014"), "caption": "Two giraffes.", "image_id": "coco_25"},
        {"image": coco_name(77), "caption": "Nobody has it.", "image_id": "coco_77"},
        {"image": coco_name(25, "val2014"), "caption": "  ", "image_id": "coco_25"},
    ]
    put(root / "coco/annotations/coco_karpathy_train.json", rows)


def coco_karpathy_own(root: Path) -> None:
    coco(root, "train2014/9", "val2014/25", "val2014/42")

    def entry(number: int, folder: str, split: str, *texts: str) -> dict[str, Any]:
        name = coco_name(number, folder).split("/")[1]
        sentences = [{"raw": text, "tokens": text.split(), "sentid": n} for n, text in enumerate(texts)]
        return {"filepath": folder, "filename": name, "split": split, "cocoid": number, "sentences": sentences}

    images = [
        entry(9, "train2014", "train", "A dog runs.", "Ein Hund läuft 🐕."),
        entry(25, "val2014", "restval", "Two giraffes."),
        entry(42, "val2014", "val", "Not of this split."),
        entry(77, "train2014", "train", "Nobody has it."),
    ]
    put(root / "coco/annotations/dataset_coco.json", {"dataset": "coco", "images": images})


def coco_chair(root: Path) -> None:
    coco(root, "val2014/25", "val2014/42")
    rows = [{"image": coco_name(n, "val2014"), "caption": ["A cat.", "It sits."]} for n in (25, 42)]
    put(root / "coco/annotations/coco_karpathy_test.json", rows)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dining table"}]
    annotations = [{"id": n, "image_id": 25, "category_id": c, "bbox": [1, 2, 3, 4]} for n, c in enumerate((2, 1, 1))]
    put(root / "coco/annotations/instances_val2014.json", {"categories": categories, "annotations": annotations})
    put(root / "coco/annotations/instances_train2014.json", {"categories": categories, "annotations": []})


def textcaps(root: Path) -> None:
    """Captions in `caption_str`, as MiniGPT-4's `text_caps.py` reads them."""
    put(root / "textcaps/train_images/a1.jpg", jpeg(1))
    rows = [
        {"image_id": "a1", "caption_str": "A sign says STOP.", "id": 1},
        {"image_id": "a1", "caption_str": "“STOP” on red", "id": 2},
        {"image_id": "a1", "caption_str": "A sign says STOP.", "id": 4},
        {"image_id": "b2", "caption_str": "Nobody has it.", "id": 3},
    ]
    put(root / "textcaps/TextCaps_0.1_train.json", {"dataset_name": "textcaps", "data": rows})


def textcaps_val(root: Path) -> None:
    put(root / "textcaps/train_images/a1.jpg", jpeg(1))
    rows = [
        {"image_id": "a1", "reference_strs": ["A sign.", "A red sign.", ""]},
        {"image_id": "b2", "reference_strs": ["x"]},
    ]
    put(root / "textcaps/TextCaps_0.1_val.json", {"data": rows})


def nocaps(root: Path) -> None:
    put(root / "nocaps/images/0013ea2087020901.jpg", jpeg(1))
    put(root / "nocaps/images/abc.jpg", jpeg(2))
    images = [
        {"id": 0, "file_name": "0013ea2087020901.jpg", "open_images_id": "0013ea2087020901", "domain": "in-domain"},
        {"id": 1, "file_name": "other-name.jpg", "open_images_id": "abc", "domain": "out-domain"},
        {"id": 2, "file_name": "gone.jpg", "open_images_id": "gone", "domain": "near-domain"},
    ]
    annotations = [{"id": n, "image_id": n // 2, "caption": f"Caption {n}"} for n in (*range(6), 0)]
    put(root / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def flickr_sentences(root: Path) -> None:
    """Captions of the entities' split, from the same files."""
    flickr(False)(root)
    (root / "flickr30k/train.txt").rename(root / "flickr30k/test.txt")


def flickr_karpathy(root: Path) -> None:
    put(root / "flickr30k/images/100.jpg", jpeg(1))
    rows = [
        {"filename": "100.jpg", "split": "test", "sentences": [{"raw": "Two men."}, {"raw": "Männer stehen."}] * 2},
        {"filename": "101.jpg", "split": "test", "sentences": [{"raw": "Not there."}]},
        {"filename": "102.jpg", "split": "val", "sentences": [{"raw": "Another split."}]},
    ]
    put(root / "flickr30k/dataset_flickr30k.json", {"images": rows})
