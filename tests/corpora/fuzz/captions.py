"""Folders of images with captions beside them with one change each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tests.corpora.fuzz.dataset import Dataset
from tests.corpora.fuzz.outcome import Case, Expected
from tests.corpora.fuzz.photos import Photo

WORDS = ("a", "dog", "größer", "犬", "x,y", '"big"', "2 cats", "3", "\n", "😀", "[0]", "<3", "{a}")


def _dataset(rng: random.Random, folder: Path, photos: list[Photo]) -> Dataset:
    made = Dataset()
    for place, photo in enumerate(rng.sample(photos, rng.randint(1, 4))):
        stem = rng.choice(["", "sub/", "a/b c/"]) + rng.choice([f"img{place}", f"v1.{place}", f"größe {place}"])
        key, caption = f"{stem}.{photo.name.rpartition('.')[2]}", " ".join(["A", *rng.choices(WORDS, k=4), "end"])
        made.files[key] = (folder / photo.name).read_bytes()
        kind = rng.choice(["txt", "txt", "caption", "json", "both"])
        label = f"{stem}.{'json' if kind == 'both' else kind}"
        answers = [caption]
        if kind in ("json", "both"):
            if rng.random() < 0.3:
                answers = [caption, "Another one."]
            document = {"captions": answers} if len(answers) > 1 else {rng.choice(["caption", "text"]): caption}
            made.files[label] = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()
        else:
            made.files[label] = caption.encode()
        if kind == "both":
            made.files[f"{stem}.txt"] = b"not this one"
        made.samples[key], made.labels[key], made.images[key] = Expected(photo, answers=answers), label, key
    return made


def _key(made: Dataset, rng: random.Random) -> str:
    return rng.choice(list(made.samples))


def nothing(made: Dataset, rng: random.Random) -> None:
    pass


def rewrite(made: Dataset, rng: random.Random) -> None:
    """A byte order mark, UTF-16 with its mark, and line ends at the ends are the same text."""
    key = _key(made, rng)
    encoding = rng.choice(["utf-8-sig", "utf-16"])
    made.files[made.labels[key]] = f"\n{made.text(key)}\r\n".encode(encoding)


def upper_case_the_suffix(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    stem, _, suffix = made.labels[key].rpartition(".")
    made.files[f"{stem}.{suffix.upper()}"] = made.files.pop(made.labels[key])


def add_hidden_files(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.files |= {"__MACOSX/x.jpg": b"\0", ".hidden/x.txt": b"x", f"._{Path(key).name}": b"\0\5"}


def lose_the_caption(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    stem = key.rpartition(".")[0]
    for suffix in ("txt", "caption", "json"):
        made.files.pop(f"{stem}.{suffix}", None)
    made.leave_out(key)
    if not made.samples:
        made.fault, made.retry, made.silent = "set", None, []


def lose_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    del made.files[key]
    del made.samples[key]
    made.silent.append(key.rpartition(".")[0])
    if not made.samples:
        made.fault, made.retry, made.silent = "set", None, []


def damage_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.files[key] = rng.choice([made.files[key][: -len(made.files[key]) // 10], b"", b"<html></html>"])
    made.lose(key)


def double_the_image(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    made.files[f"{key.rpartition('.')[0]}.bmp"] = made.files[key]
    made.lose(key, "have one caption file")


def double_the_caption(made: Dataset, rng: random.Random) -> None:
    """Two texts that differ, if there is no json."""
    key = _key(made, rng)
    stem, _, suffix = made.labels[key].rpartition(".")
    if suffix != "json":
        made.files |= {f"{stem}.txt": b"One.", f"{stem}.caption": b"Two."}
        made.lose(key)


def spoil_the_caption(made: Dataset, rng: random.Random) -> None:
    key = _key(made, rng)
    stem = key.rpartition(".")[0]
    made.files.pop(f"{stem}.txt", None)
    bad = [b"", b" \n ", "größer".encode("latin-1"), b"a\0b", "a\ufffd".encode(), b"<image> a", b"[caption] a"]
    bad += [b"0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.1 0.1\n", b"\xff\xfea"]
    bad_json = [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"caption": 3}',
        b'{"caption": ["a"]}',
        b'{"captions": "a"}',
        b'{"captions": []}',
    ]
    bad_json += [
        b'{"captions": ["a", ""]}',
        b'{"caption": ""}',
        b"{}",
        b'{"shapes": []}',
        b"[" * 100_000,
        b'{"text": "\\ud83d"}',
    ]
    made.files[made.labels[key]] = rng.choice(bad_json if made.labels[key].endswith("json") else bad)
    made.lose(key)


CHANGES: tuple[Callable[[Dataset, random.Random], None], ...] = (
    *(nothing, rewrite, upper_case_the_suffix, add_hidden_files, lose_the_caption, lose_the_image, damage_the_image),
    *(double_the_image, double_the_caption, spoil_the_caption),
)


def draw_case(rng: random.Random, folder: Path, photos: list[Photo]) -> tuple[str, Case]:
    """A folder with one change, and the name of the change."""
    made, change = _dataset(rng, folder, photos), rng.choice(CHANGES)
    change(made, rng)
    return change.__name__, made.case(folder)
