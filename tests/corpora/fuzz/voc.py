"""Pascal VOC datasets in a random layout with one change each, written without an XML library.

The devkit counts pixels from 1 and includes the last one: `xmin` is the left edge plus 1, `xmax` the right edge.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.dataset import Dataset
from tests.corpora.fuzz.frames import draw_frame
from tests.corpora.fuzz.outcome import Case, Expected
from tests.corpora.fuzz.photos import Box4, Photo, draw_box

NAMES = ("cat", "traffic light", "größer Hund", "A&B")


def _object(rng: random.Random, name: str, box: Box4) -> str:
    corners = {"xmin": box[0] + 1, "ymin": box[1] + 1, "xmax": box[2], "ymax": box[3]}
    tags = rng.sample(list(corners), 4)
    bounds = "<bndbox>" + "".join(f"<{tag}> {corners[tag]:.10g} </{tag}>" for tag in tags) + "</bndbox>"
    more = rng.choice(
        ["", "<pose>Left</pose><truncated>0</truncated>", "<difficult>1</difficult>", "<occluded>0</occluded>"]
    )
    part = f"<part><name>head</name>{bounds}</part>" if rng.random() < 0.1 else ""
    return f"<object><name>{escape(name)}</name>{part}{more}{bounds}</object>"


def _dataset(rng: random.Random, folder: Path, photos: list[Photo]) -> Dataset:
    made, layout = Dataset(), rng.choice(["voc", "lists", "label-studio", "roboflow", "labelimg"])
    place_of = {"label-studio": ("images/", "Annotations/"), "roboflow": ("train/", "train/"), "labelimg": ("", "")}
    images, labels = place_of.get(layout, ("JPEGImages/", "Annotations/"))
    for place, photo in enumerate(rng.sample(photos, rng.randint(1, 4))):
        stem, suffix = rng.choice([f"img {place}", f"a.b{place}", f"größe{place}"]), photo.name.rpartition(".")[2]
        if layout == "lists" and place % 2:
            stem = f"sub/{stem}"
        stated, to_file, tolerance = draw_frame(rng, photo)
        expected, objects = Expected(photo, tolerance_px=tolerance), []
        for _ in range(rng.randint(1, 4)):
            name, box = rng.choice(NAMES), draw_box(rng, photo)
            objects.append(_object(rng, name, to_file(box)))
            expected.boxes.setdefault(name, []).append(box)
        if tolerance > 0.01:  # xmin - 1 is a pixel of the scaled image
            expected.tolerance_px = 1.5
        sides = "".join(f"<{key}>{value if value is not None else ''}</{key}>" for key, value in stated.items())
        size = f"<size>{sides}<depth>3</depth></size>" if stated or rng.random() < 0.5 else ""
        named = rng.choice(
            [f"<filename>{escape(stem)}.{suffix}</filename>"] * 3 + ["", f"<filename>{Path(stem).name}</filename>"]
        )
        text = f"<annotation><folder>x</folder>{named}{size}{''.join(objects)}</annotation>"
        key = f"{stem}.xml"
        made.files |= {f"{images}{stem}.{suffix}": (folder / photo.name).read_bytes(), f"{labels}{key}": text.encode()}
        made.samples[key], made.labels[key] = expected, f"{labels}{key}"
        made.images[key] = f"{images}{stem}.{suffix}"
    if layout == "lists":
        name = rng.choice(["train", "default"])
        made.files[f"ImageSets/Main/{name}.txt"] = "".join(f"{key[:-4]}\n" for key in made.samples).encode()
        if name == "train":
            made.files |= {"ImageSets/Main/val.txt": b"other\n", "Annotations/other.xml": b"<annotation/>"}
    return made


def _key(made: Dataset, rng: random.Random) -> str:
    return rng.choice(list(made.samples))


def nothing(made: Dataset, rng: random.Random) -> None:
    pass


def change_the_encoding(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    encoding = rng.choice(["utf-8", "utf-16", "iso-8859-1", "utf-8-sig"])
    head = rng.choice(["", "\n"]).join([f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>', ""])
    made.files[made.labels[key]] = (head + made.text(key)).encode(encoding)


def _replace(made: Dataset, rng: random.Random, old: str, new: str) -> str:
    key = _key(made, rng)
    made.put(key, made.text(key).replace(old, new, 1))
    return key


def _lose_first_object(made: Dataset, key: str, fault: str) -> None:
    """Expect the error of the first object, and the file without it."""
    text = made.text(key)
    name = text.partition("<object><name>")[2].partition("</name>")[0].replace("&amp;", "&")
    expected = made.samples[key]
    expected.boxes[name] = expected.boxes[name][1:]
    if not expected.boxes[name]:
        del expected.boxes[name]
    made.fault = fault
    if not expected.boxes:
        del made.samples[key]
        made.silent.append(key)


def rename_a_tag(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    _lose_first_object(made, key, f"{key}: object 1")
    head, _, tail = made.text(key).partition("<object>")
    tag, wrong = rng.choice([("bndbox", "box"), ("bndbox", "polygon"), ("name", "label")])
    first, end, rest = tail.partition("</object>")
    first = first.replace(f"<{tag}>", f"<{wrong}>").replace(f"</{tag}>", f"</{wrong}>")
    made.put(key, f"{head}<object>{first}{end}{rest}")


def spoil_a_number(made: Dataset, rng: random.Random) -> None:
    """After the parts, whose numbers are passed over."""
    key = _key(made, rng)
    _lose_first_object(made, key, f"{key}: object 1")
    head, _, tail = made.text(key).partition("<object>")
    first, end, rest = tail.partition("</object>")
    before, _, bounds = first.rpartition("<xmin>")
    value = rng.choice(["", "x", "nan", "inf", "1e999", "1,5", "9999", "0x10", "<b>3</b>"])
    made.put(key, f"{head}<object>{before}<xmin>{value}</xmin>{bounds.partition('</xmin>')[2]}{end}{rest}")


def state_another_size(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    photo, text = made.samples[key].photo, made.text(key)
    head, _, tail = text.partition("<size>")
    rest = tail.partition("</size>")[2] if tail else text.partition("<folder>x</folder>")[2]
    head = head if tail else text.partition("<folder>x</folder>")[0]
    sides = rng.choice(
        [
            f"<width>{2 * photo.width + 31}</width><height>{photo.height}</height>",
            f"<width>{photo.width}</width>",
            "<width>a</width><height>3</height>",
            "<width>-4</width><height>3</height>",
            "<width>inf</width><height>3</height>",
        ]
    )
    made.put(key, f"{head}<size>{sides}</size>{rest}")
    made.lose(key)


def truncate(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    data = made.files[made.labels[key]]
    keep = rng.randint(15, len(data) - 1)  # so that the root is still that of an annotation
    made.files[made.labels[key]] = data[:keep]
    made.lose(key)


def declare_entities(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    entity = rng.choice(['<!ENTITY a "b">', '<!ENTITY a SYSTEM "file:///etc/passwd">', ""])
    made.put(key, f"<!DOCTYPE annotation [{entity}]>" + made.text(key))
    made.lose(key)


def lose_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    del made.files[made.images[key]]
    made.lose(key)


def damage_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    data = made.files[made.images[key]]
    made.files[made.images[key]] = rng.choice([data[: -len(data) // 10], b"", b"<html></html>"])
    made.lose(key)


def name_another_image(made: Dataset, rng: random.Random) -> None:
    """The file names an image that another file has, and its own image exists, too."""
    if len(made.samples) < 2:
        return
    key, other = rng.sample(list(made.samples), 2)
    text = made.text(key)
    head, _, tail = text.partition("<folder>x</folder>")
    tail = tail.partition("</filename>")[2] or tail
    name = escape(Path(made.images[other]).name if "/" not in other else made.images[other].partition("/")[2])
    made.put(key, f"{head}<folder>x</folder><filename>{name}</filename>{tail}")
    made.lose(key)


def drop_the_objects(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.put(key, made.text(key).partition("<object>")[0] + "</annotation>")
    made.leave_out(key)


def lose_the_annotation(made: Dataset, rng: random.Random) -> None:
    """Of a list it is a mistake. Otherwise its image is one without an annotation."""
    key = _key(made, rng)
    del made.files[made.labels[key]]
    if not any(name.startswith(("Annotations/", "train/")) or name.endswith(".xml") for name in made.files):
        made.fault, made.retry = "set", None
    elif "ImageSets/Main/train.txt" in made.files or "ImageSets/Main/default.txt" in made.files:
        made.lose(key)
    elif len(made.samples) == 1:
        made.fault, made.retry = "set", None
    else:
        made.leave_out(key)
        made.silent[-1] = Path(made.images[key]).name


def leave_by_more(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    expected = made.samples[key]
    photo = expected.photo
    bounds = f"<xmin>-8</xmin><ymin>6</ymin><xmax>{3 * photo.width}</xmax><ymax>{photo.height - 5}</ymax>"
    text = (
        f"<annotation><size><width>{photo.width}</width><height>{photo.height}</height></size><object><name>cat</name>"
    )
    made.put(key, f"{text}<bndbox>{bounds}</bndbox></object></annotation>")
    expected.boxes = {"cat": [(0, 5, photo.width, photo.height - 5)]}
    made.fault, made.retry = f"{key}: object 1", OwnOptions(cut_boxes=True)


CHANGES: tuple[Callable[[Dataset, random.Random], None], ...] = (
    *(nothing, change_the_encoding, rename_a_tag, spoil_a_number, state_another_size, truncate, declare_entities),
    *(lose_the_image, damage_the_image, name_another_image, drop_the_objects, lose_the_annotation, leave_by_more),
)


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A dataset with one change, and the name of the change."""
    made, change = _dataset(rng, folder, photos), rng.choice(CHANGES)
    change(made, rng)
    return change.__name__, made.case(folder)
