"""COCO detection files with one change each. The right boxes are those in the upright image, drawn before the file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.frames import draw_frame
from tests.corpora.fuzz.outcome import Case, Expected
from tests.corpora.fuzz.photos import Box4, Photo, draw_box

NAMES = ("cat", "tennis racket", "größer Hund", "犬", "traffic light", "O'Hare (3)")
Entry = dict[str, Any]


@dataclass
class File:
    """A COCO file, what must come of it, and where its annotations stand."""

    document: dict[str, Any]
    samples: dict[str, Expected]
    fault: str = ""
    retry: OwnOptions | None = OwnOptions(skip_faults=True)
    silent: list[str] = field(default_factory=list)
    data: Callable[[bytes], bytes] = lambda data: data
    encoding: str = "utf-8"
    ascii_only: bool = True

    def lose_box(self, annotation: Entry) -> None:
        """Expect the file without the box of an annotation, and without its image if it was the only one."""
        self.lose_boxes([annotation])

    def lose_boxes(self, annotations: list[Entry]) -> None:
        names = {one["id"]: one["name"] for one in self.document["categories"]}
        marked = {id(one) for one in annotations}
        for key in {str(one["image_id"]) for one in annotations}:
            kept: dict[str, list[Box4]] = {}
            place: dict[str, int] = {}
            for one in self.document["annotations"]:
                if str(one["image_id"]) == key and not one.get("iscrowd"):
                    name = names[one["category_id"]]
                    if id(one) not in marked:
                        kept.setdefault(name, []).append(self.samples[key].boxes[name][place.get(name, 0)])
                    place[name] = place.get(name, 0) + 1
            self.samples[key].boxes = kept
            if not kept:
                del self.samples[key]
                self.silent.append(f"image {key} (")


def _file(rng: random.Random, photos: list[Photo]) -> File:
    chosen = rng.sample(photos, rng.randint(1, 4))
    first = rng.choice([0, 1, 7, 139, -3])
    names = rng.sample(NAMES, rng.randint(1, 3))
    categories = [{"id": number + rng.choice([0, 1]) * 90, "name": name} for number, name in enumerate(names, 1)]
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    file = File(document, {}, ascii_only=rng.random() < 0.5)
    for number, photo in enumerate(chosen, first):
        stated, to_file, tolerance = draw_frame(rng, photo)
        document["images"].append({"id": number, "file_name": photo.name, **stated})
        expected = file.samples[str(number)] = Expected(photo, tolerance_px=tolerance)
        for _ in range(rng.randint(1, 4)):
            category, box = rng.choice(categories), draw_box(rng, photo)
            expected.boxes.setdefault(category["name"], []).append(box)
            x1, y1, x2, y2 = to_file(box)
            given = [x1, y1, x2 - x1, y2 - y1]
            annotation = {"image_id": number, "category_id": category["id"], "bbox": given}
            document["annotations"].append({"id": len(document["annotations"]) + 1, **annotation})
    if rng.random() < 0.3:
        for part in rng.sample(sorted(document), 2):
            document[part] = document.pop(part)
    return file


def _annotation(file: File, rng: random.Random) -> Entry:
    return rng.choice(file.document["annotations"])  # type: ignore[no-any-return]


def _image(file: File, rng: random.Random) -> Entry:
    return rng.choice(file.document["images"])  # type: ignore[no-any-return]


def _of_image(file: File, image: Entry) -> list[Entry]:
    return [one for one in file.document["annotations"] if one["image_id"] == image["id"]]


def nothing(file: File, rng: random.Random) -> None:
    pass


def add_keys(file: File, rng: random.Random) -> None:
    file.document |= {"info": {"year": 2017}, "licenses": [{"id": 1}]}
    for part, extra in (
        ("images", {"license": 4, "coco_url": "http://x/y.jpg", "date_captured": "2013"}),
        ("annotations", {"area": 12.5, "segmentation": [[1, 2, 3, 4, 5, 6]], "attributes": {"occluded": False}}),
        ("categories", {"supercategory": "animal", "keypoints": []}),
    ):
        for one in file.document[part]:
            one |= extra


def change_the_encoding(file: File, rng: random.Random) -> None:
    file.ascii_only = False
    file.encoding = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])


def save_as_latin1(file: File, rng: random.Random) -> None:
    file.document["info"] = {"description": "größer"}
    file.ascii_only = False
    file.data = lambda data: data.decode().replace("犬", "ö").encode("latin-1", "replace")
    file.fault, file.retry = "not UTF-8", None


def truncate(file: File, rng: random.Random) -> None:
    share = rng.random()
    file.data = lambda data: data[: int(share * len(data))]
    file.fault, file.retry = "my.json", None


def rename_a_key(file: File, rng: random.Random) -> None:
    part, key, wrong = rng.choice(
        [
            ("annotations", "bbox", "box"),
            ("annotations", "image_id", "imageId"),
            ("annotations", "category_id", "category"),
            ("images", "file_name", "filename"),
            ("categories", "name", "label"),
        ]
    )
    one = rng.choice(file.document[part])
    _spoil(file, part, one)
    one[wrong] = one.pop(key)


def _spoil(file: File, part: str, one: Entry) -> None:
    """Expect the error of one entry, and the file without it and what refers to it."""
    noun = {"annotations": "annotation", "images": "image", "categories": "category"}[part]
    file.fault = f"{noun} {one['id']}"
    if part == "annotations":
        file.lose_box(one)
    elif part == "images":
        del file.samples[str(one["id"])]
    else:
        file.lose_boxes([a for a in file.document["annotations"] if a["category_id"] == one["id"]])


def change_a_type(file: File, rng: random.Random) -> None:
    part, key, values = rng.choice(
        [
            ("annotations", "bbox", [None, "1,2,3,4", {"x": 1}, [1, 2, 3], [1, 2, 3, "4"], [[1, 2, 3, 4]], 7]),
            ("annotations", "bbox", [[1, 2, math.nan, 4], [1, 2, math.inf, 4], [1, 2, 10**400, 4], [1, 2, True, 3]]),
            ("annotations", "bbox", [[5, 5, 0, 9], [5, 5, 9, 0], [20, 20, -5, 9], []]),
            ("annotations", "image_id", [None, "1x", [1], {}, 10**9, 1.5, True, False]),
            ("annotations", "category_id", [None, "cat", [1], {}, 10**9, True]),
            ("images", "id", [None, [1], {}, True, math.nan, "", math.inf, -math.inf]),
            ("annotations", "iscrowd", ["0", 2, [], {}]),
            ("images", "file_name", [None, 3, ["a.jpg"], "", "  ", "a\0.jpg", "\ud83d.jpg"]),
            ("images", "width", ["64", -64, 1.5, [64], True]),
            ("categories", "name", [None, 3, ["cat"], "", " ", "<p>cat</p>", "a {1}", "x < y"]),
            ("categories", "name", ["cat\ufffd", "[refer] cat", "a\0"]),
        ]
    )  # fmt: skip
    one = rng.choice(file.document[part])
    _spoil(file, part, one)
    one[key] = rng.choice(values)
    if key == "id":
        file.fault = f"image {json.dumps(one[key])}"


def drop_a_size(file: File, rng: random.Random) -> None:
    image = _image(file, rng)
    _spoil(file, "images", image)
    image |= {"width": 64, "height": 48}
    del image[rng.choice(["width", "height"])]


def state_another_size(file: File, rng: random.Random) -> None:
    """The size of another image: neither frame has its proportions."""
    image = _image(file, rng)
    photo = file.samples[str(image["id"])].photo
    _spoil(file, "images", image)
    image |= {"width": photo.width * 2 + 31, "height": photo.height}


def exchange_the_size(file: File, rng: random.Random) -> None:
    """Only an image that is stored upright: its exchanged size is that of no frame."""
    image = _image(file, rng)
    photo = file.samples[str(image["id"])].photo
    if photo.orientation < 5:
        _spoil(file, "images", image)
        image |= {"width": photo.height, "height": photo.width}


def lose_the_photo(file: File, rng: random.Random) -> None:
    image = _image(file, rng)
    _spoil(file, "images", image)
    image["file_name"] = "photos/none.jpg"


def damage_the_photo(file: File, rng: random.Random) -> None:
    image = _image(file, rng)
    photo = file.samples[str(image["id"])].photo
    _spoil(file, "images", image)
    image["file_name"] = rng.choice([f"truncated/{photo.name}", "page.jpg", "empty.jpg", "folder.jpg"])
    file.fault = image["file_name"]


def repeat_an_id(file: File, rng: random.Random) -> None:
    """Of an image: the second one is refused. Of an annotation: both boxes are kept."""
    if rng.random() < 0.5:
        for one in file.document["annotations"]:
            one["id"] = 1
        return
    part = rng.choice(["images", "categories"])
    one = rng.choice(file.document[part])
    file.document[part].append({**one, "name": "other", "file_name": "photos/none.jpg"})
    file.fault = {"images": "image", "categories": "category"}[part] + f" {one['id']}"


def repeat_a_key(file: File, rng: random.Random) -> None:
    file.data = lambda data: data.replace(b'"bbox":', b'"bbox": [1, 2, 3, 4], "bbox":', 1)
    file.fault, file.retry = "occurs twice", None


def write_corners(file: File, rng: random.Random) -> None:
    """At least one box must leave its image when read as x, y, width, height."""
    image = _image(file, rng)
    photo = file.samples[str(image["id"])].photo
    image |= {"width": photo.width, "height": photo.height}
    for one in _of_image(file, image):
        one["bbox"] = [photo.width - 20, photo.height - 20, photo.width - 3, photo.height - 2]
    file.fault, file.retry = "leave the image by more than a pixel", None


def write_another_scale(file: File, rng: random.Random) -> None:
    """Values from 0 to 1 are no boxes, and values from 0 to 1000 leave the image."""
    image = _image(file, rng)
    photo = file.samples[str(image["id"])].photo
    image |= {"width": photo.width, "height": photo.height}
    unit = rng.choice([1, 1000])
    for one in _of_image(file, image):
        one["bbox"] = [0.5 * unit, 0.5 * unit, 0.4 * unit, 0.4 * unit]
    file.fault, file.retry = ("box" if unit == 1 else "leave the image by more than a pixel"), None
    if unit == 1:
        file.fault, file.retry = f"image {image['id']}", OwnOptions(skip_faults=True)
        del file.samples[str(image["id"])]


def leave_by_a_pixel(file: File, rng: random.Random) -> None:
    image = _image(file, rng)
    expected = file.samples[str(image["id"])]
    photo = expected.photo
    image |= {"width": photo.width, "height": photo.height}
    (one, *others) = _of_image(file, image)
    file.document["annotations"] = [a for a in file.document["annotations"] if not any(a is other for other in others)]
    one["bbox"] = [-0.9, 5, photo.width + 1.7, photo.height - 5 + 0.8]
    names = {c["id"]: c["name"] for c in file.document["categories"]}
    expected.boxes = {names[one["category_id"]]: [(0, 5, photo.width, photo.height)]}


def leave_by_more(file: File, rng: random.Random) -> None:
    leave_by_a_pixel(file, rng)
    for one in file.document["annotations"]:
        if one["bbox"][0] == -0.9:
            one["bbox"] = [-9, 5, 3 * one["bbox"][2], one["bbox"][3]]
            file.fault, file.retry = f"annotation {one['id']}", OwnOptions(cut_boxes=True)


def add_crowds(file: File, rng: random.Random) -> None:
    for number in range(rng.randint(1, 3)):
        crowd = {**_annotation(file, rng), "id": 900 + number, "iscrowd": 1}
        crowd |= rng.choice([{}, {"bbox": [0, 0, 9999, 1]}, {"segmentation": {"counts": [1], "size": [1, 1]}}])
        if rng.random() < 0.5:
            crowd.pop("bbox", None)
        file.document["annotations"].insert(rng.randint(0, len(file.document["annotations"])), crowd)


def add_an_empty_image(file: File, rng: random.Random) -> None:
    file.document["images"].append({"id": 5000, "file_name": "photos/none.jpg"})
    file.silent.append("image 5000 (photos/none.jpg)")


def number_with_texts(file: File, rng: random.Random) -> None:
    for image in file.document["images"]:
        for one in _of_image(file, image):
            one["image_id"] = f"i{image['id']}"
        file.samples[f"i{image['id']}"] = file.samples.pop(str(image["id"]))
        image["id"] = f"i{image['id']}"


def spell_the_path(file: File, rng: random.Random) -> None:
    image = _image(file, rng)
    stem, _, suffix = image["file_name"].rpartition(".")
    image["file_name"] = rng.choice(
        [f"./{image['file_name']}", f"{stem}.{suffix.swapcase()}", f"photos/../{image['file_name']}"]
    )


def split_a_category(file: File, rng: random.Random) -> None:
    """Two categories of one name are one phrase."""
    category = rng.choice(file.document["categories"])
    file.document["categories"].append({**category, "id": 777})
    for one in file.document["annotations"]:
        if one["category_id"] == category["id"] and rng.random() < 0.5:
            one["category_id"] = 777


def spoil_a_part(file: File, rng: random.Random) -> None:
    part = rng.choice(sorted(file.document))
    if rng.random() < 0.5:
        file.document[part[:-1]] = file.document.pop(part)
    else:
        file.document[part] = {str(n): one for n, one in enumerate(file.document[part])}
    file.fault, file.retry = "my.json", None


def write_no_object(file: File, rng: random.Random) -> None:
    text = rng.choice(
        [b"3", b'"a"', b"null", b"{}", b"", b"   ", b"[" * 100_000, b"\xff\xfe", b"\0" * 20, b'{"a": 1}\n{}']
    )
    file.data = lambda data: text
    file.fault, file.retry = "my.json", None  # fmt: skip


CHANGES: tuple[Callable[[File, random.Random], None], ...] = (
    *(nothing, add_keys, change_the_encoding, save_as_latin1, truncate, rename_a_key, change_a_type, drop_a_size),
    *(state_another_size, exchange_the_size, lose_the_photo, damage_the_photo, repeat_an_id, repeat_a_key),
    *(write_corners, write_another_scale, leave_by_a_pixel, leave_by_more, add_crowds, add_an_empty_image),
    *(number_with_texts, spell_the_path, split_a_category, spoil_a_part, write_no_object),
)


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A file with one change, and the name of the change."""
    file, change = _file(rng, photos), rng.choice(CHANGES)
    change(file, rng)
    text = json.dumps(file.document, ensure_ascii=file.ascii_only or "\\ud" in json.dumps(file.document))
    data = file.data(text.encode(file.encoding))
    return change.__name__, Case(folder / "my.json", data, file.samples, file.fault, file.retry, tuple(file.silent))
