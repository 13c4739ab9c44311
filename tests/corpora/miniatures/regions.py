"""Writes miniatures of corpora with boxes: referring expressions, Visual Genome, Flickr30k Entities."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpora.miniatures.files import coco, jpeg, put

OBJECTS = [
    # ref_id, picture, bbox x y w h, expressions
    (1, 9, (10, 10, 20, 20), ["left dog", "THE DOG"]),
    (2, 9, (40, 30, 40, 40), ["dog that leaves the picture"]),
    (3, 25, (0, 0, 64, 48), ["everything", "großes Ganzes"]),
    (4, 77, (0, 0, 5, 5), ["in no picture"]),
    (5, 25, (70, 10, 5, 5), ["outside"]),
    (6, 25, (1, 1, 9, 9), ["  "]),
]
OBJECTS_DROPPED = {"image file missing": 1, "box outside the image": 1, "empty phrase": 1, "duplicate id": 1}


def refer(folder: str, by: str, split: str) -> Callable[[Path], None]:
    """REFER's pickle, protocol 2 as Python 2 wrote it, and instances, with the keys that its `refer.py` reads."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        refs = [
            {
                "ref_id": ref,
                "ann_id": 100 + ref,
                "image_id": picture,
                "category_id": 1,
                "split": split,
                "sent_ids": list(range(len(texts))),
                "file_name": f"COCO_train2014_{picture:012d}_{ref}.jpg",
                "sentences": [{"raw": t, "sent": t.lower(), "tokens": t.split(), "sent_id": 7} for t in texts],
            }
            for ref, picture, _, texts in [*OBJECTS, OBJECTS[0]]
        ]
        refs.append({**refs[0], "ref_id": 9, "split": "elsewhere"})
        put(root / folder / f"refs({by}).p", pickle.dumps(refs, protocol=2))
        annotations = [{"id": 100 + ref, "image_id": picture, "bbox": list(box)} for ref, picture, box, _ in OBJECTS]
        put(root / folder / "instances.json", {"info": {}, "images": [], "annotations": annotations, "categories": []})

    return make


def refer_list(folder: str, split: str) -> Callable[[Path], None]:
    """The list of expressions that MiniGPT-4's `eval_ref.py` reads: the first 27 characters name the picture."""

    def make(root: Path) -> None:
        coco(root, "train2014/9", "train2014/25")
        rows = [
            {"img_id": f"COCO_train2014_{picture:012d}_{ref}", "sents": text, "bbox": list(box), "height": 48}
            for ref, picture, box, texts in OBJECTS
            for text in texts
        ]
        put(root / folder / f"{folder}_{split}.json", rows)

    return make


def visual_genome(one_folder: bool) -> Callable[[Path], None]:
    """Regions by picture, as `local.py` of ranjaykrishna/visual_genome_python_driver reads them."""

    def make(root: Path) -> None:
        for name, folder in (("1", "VG_100K"), ("2", "VG_100K_2")):
            put(root / "visual_genome" / ("images" if one_folder else folder) / f"{name}.jpg", jpeg(3))

        def region(number: int, picture: int, phrase: str, x: int, y: int, w: int, h: int) -> dict[str, Any]:
            return {"region_id": number, "image_id": picture, "phrase": phrase, "x": x, "y": y, "width": w, "height": h}

        regions = [
            [
                region(1, 1, "the clock", 4, 4, 10, 10),
                region(2, 1, "grüne Tür", -3, 30, 20, 40),
                region(1, 1, "twice", 1, 1, 5, 5),
            ],
            [
                region(3, 2, "a wall", 0, 0, 200, 200),
                region(4, 2, "a line", 5, 5, 0, 9),
                region(5, 2, "a shoe", 50, 40, 8, 8),
            ],
            [region(6, 3, "nowhere", 0, 0, 5, 5)],
        ]
        put(
            root / "visual_genome/region_descriptions.json",
            [{"id": n + 1, "regions": r} for n, r in enumerate(regions)],
        )

    return make


REGIONS_DROPPED = {
    "region too large": 1,
    "duplicate id": 1,
    "empty or inverted box": 1,
    "image file missing": 1,
}


def flickr(nested: bool) -> Callable[[Path], None]:
    """The entities' own files, as their `flickr30k_entities_utils.py` reads them; `UNRELATED_CAPTIONS` as it is there.

    Picture 36's fourth sentence is not about it, 40 has no sentences, 41's are not UTF-8, 42 has no boxes' file.
    """

    def make(root: Path) -> None:
        below = root / "flickr30k" / ("Flickr30kEntities" if nested else "")
        for name in ("36", "37", "39"):
            put(root / f"flickr30k/flickr30k-images/{name}.jpg", jpeg(4))
        put(below / "train.txt", "36\n37\n38\n39\n36\n40\n41\n42\n")
        put(below / "UNRELATED_CAPTIONS", "# format: <imageID> <sentence number>\n39 3\n36 4\n")
        sentences = [
            "[/EN#1/people Two  dogs] and [/EN#2/animals a tan cat] play in [/EN#0/other the sun] .",
            "A [/EN#3/scene meadow] near [/EN#1/people the Hündchen] .",
            "Nothing marked here .",
        ]
        for name in ("36", "38", "39"):
            more = ["[/EN#1/people Two men] sell shoes ."] if name == "36" else []
            put(below / f"Sentences/{name}.txt", "\n".join(sentences + more) + "\n")
        put(below / "Sentences/41.txt", "[/EN#1/people Ein M\xe4nnchen] .\n".encode("latin-1"))
        put(below / "Sentences/42.txt", sentences[0])
        put(below / "Sentences/37.txt", "[/EN#9/other A thing] without boxes .\n")

        def thing(names: list[str], box: tuple[int, int, int, int] | None) -> str:
            tags = "".join(f"<name>{name}</name>" for name in names)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box or (), strict=False)
            place = (
                f"<bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in corners)}</bndbox>"
                if box
                else "<nobndbox>1</nobndbox>"
            )
            return f"<object>{tags}{place}</object>"

        things = [thing(["1"], (1, 1, 20, 20)), thing(["1", "2"], (10, 10, 66, 40)), thing(["3"], None)]
        xml = "<annotation><size><width>64</width></size>{}</annotation>"
        for name in ("36", "38", "39"):
            put(below / f"Annotations/{name}.xml", xml.format("".join(things)))
        put(below / "Annotations/37.xml", xml.format(thing(["8"], (1, 1, 2, 2))))

    return make


FLICKR_DROPPED = {
    "no phrase with a box": 1,
    "sentences missing": 1,
    "sentences in no known encoding": 1,
    "annotations missing": 1,
    "sentence not about the picture": 1,
}
