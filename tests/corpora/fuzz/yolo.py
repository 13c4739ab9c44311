"""YOLO datasets in a random layout with one change each. Boxes are written as shares of the upright image."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from minigptv2.corpora.own import OwnOptions
from tests.corpora.fuzz.dataset import Dataset
from tests.corpora.fuzz.outcome import Case, Expected
from tests.corpora.fuzz.photos import Box4, Photo, draw_box

NAMES = ("cat", "traffic light", "größer Hund", "no", "3")


def _row(rng: random.Random, number: int, box: Box4, photo: Photo) -> str:
    x1, y1, x2, y2 = box[0] / photo.width, box[1] / photo.height, box[2] / photo.width, box[3] / photo.height
    values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    form = rng.choice(["{:.8f}", "{:.8f}", "{:.9e}", "{!r}"])
    return " ".join([str(number), *map(form.format, values)])


def _dataset(rng: random.Random, folder: Path, photos: list[Photo]) -> Dataset:
    names = rng.sample(NAMES, rng.randint(1, 4))
    made, layout = Dataset(), rng.choice(["ultralytics", "roboflow", "darknet", "label-studio", "labelimg"])
    for place, photo in enumerate(rng.sample(photos, rng.randint(1, 4))):
        suffix = photo.name.rpartition(".")[2]
        stem = rng.choice([f"img {place}", f"a.b{place}", f"0001_jpg.rf.{place}", f"größe{place}"])
        image, label = {
            "ultralytics": (f"images/train/{stem}.{suffix}", f"labels/train/{stem}.txt"),
            "roboflow": (f"train/images/{stem}.{suffix}", f"train/labels/{stem}.txt"),
            "darknet": (f"obj_train_data/{stem}.{suffix}", f"obj_train_data/{stem}.txt"),
            "label-studio": (f"images/{stem}.{suffix}", f"labels/{stem}.txt"),
            "labelimg": (f"{stem}.{suffix}", f"{stem}.txt"),
        }[layout]
        key = f"data/{image}" if layout == "darknet" else image
        expected = Expected(photo, tolerance_px=0.01)
        rows = []
        for _ in range(rng.randint(1, 4)):
            number, box = rng.randrange(len(names)), draw_box(rng, photo)
            rows.append(_row(rng, number, box, photo))
            expected.boxes.setdefault(names[number], []).append(box)
        made.files |= {image: (folder / photo.name).read_bytes(), label: "".join(f"{row}\n" for row in rows).encode()}
        made.samples[key], made.labels[key], made.images[key] = expected, label, image
    made.files |= _description(rng, layout, names, list(made.samples))
    return made


def _description(rng: random.Random, layout: str, names: list[str], keys: list[str]) -> dict[str, bytes]:
    listed = "\n".join(names)
    if layout == "darknet":
        data = f"classes = {len(names)}\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
        lines = "\n".join(keys) + "\n"
        return {"obj.data": data.encode(), "obj.names": listed.encode(), "train.txt": lines.encode()}
    if layout in ("label-studio", "labelimg"):
        return {"classes.txt": f"{listed}\n".encode()}
    quoted = "\n".join(f"  {number}: '{name}'" for number, name in enumerate(names))
    shown = rng.choice([f"names:\n{quoted}", f"names: {names}\nnc: {len(names)}"])
    source = (
        "../train/images" if layout == "roboflow" else rng.choice(["images/train", "[images/train]", "./images/train"])
    )
    path = rng.choice(["", "path: .\n", "path: /content/elsewhere\n", "path: datasets/mine\n"])
    return {"data.yaml": f"{path}train: {source}\nval:\n{shown}\n".encode()}


def _key(made: Dataset, rng: random.Random) -> str:
    return rng.choice(list(made.samples))


def nothing(made: Dataset, rng: random.Random) -> None:
    pass


def rewrite(made: Dataset, rng: random.Random) -> None:
    """Line ends, byte order marks, blank lines, tabs and a class as a float are all the same rows."""
    key = _key(made, rng)
    text = made.text(key)
    changes: list[Callable[[str], str]] = [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: f"\ufeff{text}",
        lambda text: f"\n{text}\n\n",
        lambda text: text.replace(" ", "\t"),
        lambda text: text.rstrip("\n"),
        lambda text: "".join(f"{row.split()[0]}.0 {' '.join(row.split()[1:])}\n" for row in text.splitlines()),
    ]
    made.put(key, rng.choice(changes)(text))


def add_other_files(made: Dataset, rng: random.Random) -> None:
    made.files |= {"README.dataset.txt": b"Exported.", "notes.json": b"{}", "runs/args.yaml": b"lr: 1\n"}
    made.files |= {"hyp.yaml": b"lr0: 0.01\n", ".DS_Store": b"\0"}


def upper_case_the_suffix(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    label = made.labels[key]
    made.files[label.removesuffix("txt") + "TXT"] = made.files.pop(label)


def spoil_a_row(made: Dataset, rng: random.Random) -> None:
    """A row more, which is no box: the others are kept."""
    key = _key(made, rng)
    row = rng.choice(
        [
            *("9 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.2 0.2", "cat 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2"),
            *(
                "0 0.5 0.5 0.2 0.2 0.9",
                "0 0.5 0.5 nan 0.2",
                "0 0.5 0.5 inf 0.2",
                "0 0.5 0.5 0 0.2",
                "0 0.5 0.5 -0.1 0.2",
            ),
            *(
                "0,0.5,0.5,0.2,0.2",
                "0",
                "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
                "0 0,5 0,5 0,2 0,2",
                "0 .5 .5 .2 .2x",
                "nan 1 1 1 1",
            ),
        ]
    )
    made.put(key, made.text(key) + row + "\n")
    made.fault = f"{key}: line {made.text(key).count(chr(10))} of its labels"


def write_a_polygon(made: Dataset, rng: random.Random) -> None:
    """The corners of a box, in any order, are the box."""
    key = _key(made, rng)
    rows = made.text(key).splitlines()
    place = rng.randrange(len(rows))
    number, *values = rows[place].split()
    x, y, width, height = map(float, values)
    corners = [(x + dx * width / 2, y + dy * height / 2) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    rng.shuffle(corners)
    rows[place] = " ".join([number, *(f"{value:.9f}" for corner in corners for value in corner)])
    made.put(key, "\n".join(rows))


def empty_the_labels(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.put(key, rng.choice(["", "\n", " \r\n\r\n"]))
    made.leave_out(key)


def lose_the_labels(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    del made.files[made.labels[key]]
    made.leave_out(key)


def lose_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    del made.files[made.images[key]]
    made.lose(key, key if "obj.data" in made.files else made.labels[key])
    if not made.samples:  # its folder does not exist
        made.fault, made.retry = "set", None


def damage_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    data = made.files[made.images[key]]
    made.files[made.images[key]] = rng.choice(
        [data[: -len(data) // 10], b"", b"<html></html>", b"version https://git-lfs"]
    )
    made.lose(key)


def double_the_image(made: Dataset, rng: random.Random) -> None:
    """An image with the same stem: whose labels are these? A list names one of them."""
    if "obj.data" in made.files:
        return
    key = _key(made, rng)
    stem = made.images[key].rpartition(".")[0]
    made.files[f"{stem}.bmp"] = made.files[made.images[key]]
    made.lose(key, "have one label file")


def encode_the_labels(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    if rng.random() < 0.5:
        made.files[made.labels[key]] = made.text(key).encode("utf-16")
    else:
        made.files[made.labels[key]] += "# größer".encode("latin-1")
        made.lose(key)


def write_corners(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.put(key, "0 0.5 0.5 0.9 0.9\n0 0.6 0.4 0.95 0.9\n" if rng.random() < 0.5 else "0 30 20 12 10\n")
    made.fault, made.retry = "leave the image by more than a pixel", None


def leave_by_a_pixel(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    photo = made.samples[key].photo
    made.put(key, f"0 0.5 0.5 {1 + 1.6 / photo.width:.8f} {1 + 1.6 / photo.height:.8f}\n")
    made.samples[key].boxes = {_first_name(made): [(0, 0, photo.width, photo.height)]}


def leave_by_more(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    photo = made.samples[key].photo
    made.put(key, "0 0.5 0.5 1.5 0.5\n")
    made.samples[key].boxes = {_first_name(made): [(0, photo.height / 4, photo.width, 3 * photo.height / 4)]}
    made.fault, made.retry = f"{key}: line 1 of its labels", OwnOptions(cut_boxes=True)


def _first_name(made: Dataset) -> str:
    for listing in ("obj.names", "classes.txt"):
        if listing in made.files:
            return made.files[listing].decode().splitlines()[0]
    names = made.files["data.yaml"].decode().partition("names:")[2].strip()
    return names.split("'")[1]


def spoil_the_names(made: Dataset, rng: random.Random) -> None:
    listing = next(name for name in ("data.yaml", "obj.names", "classes.txt") if name in made.files)
    if listing == "data.yaml":
        text = made.files[listing].decode()
        head = text.partition("names:")[0]
        choices = [
            "names: 3",
            "names: [a, [b]]",
            "names: {a: cat}",
            "names: [cat]\nnc: 7",
            "names: [",
            "names: ['x < 3']",
        ]
        made.files[listing] = (head + rng.choice([*choices, "names: {0: cat, 0: dog}", "names: ['']"])).encode()
    else:
        made.files[listing] = rng.choice([b"\xff\xfe\x00", b"x < 3\n", b"cat\n\ndog\n", b"a\0b", b"<p>cat</p>\n"])
    made.fault, made.retry = "set", None


def lose_a_name(made: Dataset, rng: random.Random) -> None:
    """No list of names: the rows of numbers are no captions."""
    for name in ("data.yaml", "obj.data", "obj.names", "classes.txt"):
        made.files.pop(name, None)
    made.fault, made.retry = "set", None


CHANGES: tuple[Callable[[Dataset, random.Random], None], ...] = (
    *(nothing, rewrite, add_other_files, upper_case_the_suffix, spoil_a_row, write_a_polygon, empty_the_labels),
    *(lose_the_labels, lose_the_image, damage_the_image, double_the_image, encode_the_labels, write_corners),
    *(leave_by_a_pixel, leave_by_more, spoil_the_names, lose_a_name),
)


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A dataset with one change, and the name of the change."""
    made, change = _dataset(rng, folder, photos), rng.choice(CHANGES)
    change(made, rng)
    return change.__name__, made.case(folder)
