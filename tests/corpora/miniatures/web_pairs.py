"""Writes miniatures of image-text pairs from the web, as img2dataset and GRIT store them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpora.miniatures.files import jpeg, tar


def pairs(corpus: str, below: str, with_json: bool) -> Callable[[Path], None]:
    """img2dataset's tars: a caption in json and txt, as its README describes them, or in txt alone.

    MiniGPT-4's `README_1_STAGE.md` has them a folder deeper.
    """

    def make(root: Path) -> None:
        def pair(key: str, caption: str, image: bytes | None) -> list[tuple[str, bytes]]:
            facts = {"caption": caption, "url": f"http://x/{key}", "key": key, "status": "success", "width": 64}
            found = [(f"{key}.jpg", image)] if image is not None else []
            found += [(f"{key}.json", json.dumps(facts).encode())] if with_json else []
            return [*found, (f"{key}.txt", caption.encode())]

        for number in range(2):
            tar(
                root / corpus / below / f"0000{number}.tar",
                *pair("000000000", "A cup of  tea", jpeg(1)),
                *pair("000000001", "eine Tasse ☕ – grün", jpeg(2, "PNG")),
                *pair("000000002", " ", jpeg(3)),
                *pair("000000003", "no picture", None),
                *pair("000000004", "cut off", jpeg(4)[:60]),
            )
        whole = (root / corpus / below / "00001.tar").read_bytes()
        (root / corpus / below / "00002.tar").write_bytes(whole[: 512 * 5 + 17])

    return make


PAIRS_DROPPED = {
    "empty answer": 2,
    "no image in the tar": 2,
    "truncated in its header": 2,
    "damaged archive": 1,
}

GRIT_ROWS = [
    # caption, noun chunks, expressions, sides before they were 683 x 512
    (
        "a dog and two cats on grass",
        [
            [0, 5, 0.1, 0.1, 0.5, 0.6, 0.9],
            [10, 18, 0.5, 0.5, 0.8, 0.8, 0.8],
            [10, 18, 0.6, 0.1, 1.2, 0.4, 0.7],
            [22, 27, 0.0, 0.0, 1.0, 1.0, 0.3],
        ],
        [
            [0, 5, 0.1, 0.1, 0.5, 0.6, 0.9],
            [0, 27, 0.1, 0.1, 0.9, 0.8, 0.8],
            [10, 27, 0.5, 0.1, 1.0, 0.8, 0.7],
        ],
        (640, 480),
    ),
    ("ein Käfer 🐞 auf Blatt", [[0, 9, 0.2, 0.2, 0.6, 0.6, 0.95]], [[0, 9, 0.2, 0.2, 0.6, 0.6, 0.95]], None),
    ("nothing trusted", [[0, 7, 0.1, 0.1, 0.9, 0.9, 0.5]], [[0, 99, 0.1, 0.1, 0.9, 0.9, 0.9], "junk", [0, 7]], None),
    ("a dog padded", [[0, 5, 0.1, 0.1, 0.5, 0.6, 0.9]], [[0, 5, 0.1, 0.1, 0.5, 0.6, 0.9]], (640, 640)),
]
GRIT_DROPPED = {"no trusted box": 1, "picture was padded or cropped: boxes no longer fit": 1}


def grit_facts(caption: str, before: tuple[int, int] | None) -> dict[str, Any]:
    """What img2dataset says; it knows no sides where it resized nothing."""
    width, height = before or (None, None)
    now = (683, 512) if before else (None, None)
    return {"caption": caption, "width": now[0], "height": now[1], "original_width": width, "original_height": height}


def grit_tars(root: Path) -> None:
    """img2dataset's json with the columns that the README of Kosmos-2 (microsoft/unilm) describes."""
    members = []
    for number, (caption, chunks, expressions, before) in enumerate(GRIT_ROWS):
        facts = {**grit_facts(caption, before), "noun_chunks": chunks, "ref_exps": expressions}
        members += [(f"{number:09d}.jpg", jpeg(number)), (f"{number:09d}.json", json.dumps(facts).encode())]
    tar(root / "grit/00000.tar", *members)


def grit_parquet(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"key": f"{n}", "jpg": jpeg(n), "noun_chunks": json.dumps(k), "ref_exps": json.dumps(e), **grit_facts(c, b)}
        for n, (c, k, e, b) in enumerate(GRIT_ROWS)
    ]
    (root / "grit").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "grit/00000.parquet")
