"""Writes the files that miniatures are made of, and describes a miniature."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 64, 48

MISSING = {"image file missing": 1}


@dataclass(frozen=True)
class Miniature:
    """A corpus in one of its layouts: `make` writes it below a root. `samples` and `annotations` are what is kept."""

    corpus: str
    split: str
    layout: str
    make: Callable[[Path], None]
    samples: int
    annotations: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.corpus}-{self.split}-{self.layout}"


def jpeg(seed: int = 0, format: str = "JPEG") -> bytes:
    """A small picture whose colours depend on the seed."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (seed * 53 % 256, seed * 101 % 256, 90)).save(buffer, format)
    return buffer.getvalue()


def put(file: Path, content: bytes | str | object) -> None:
    """Write bytes, a text, or anything else as JSON, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        file.write_text(text, encoding="utf-8")


def lines(rows: list[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def coco(root: Path, *names: str) -> None:
    """Pictures below `coco/`, named `train2014/9` and so on."""
    for name in names:
        folder, number = name.split("/")
        file = f"{int(number):012d}.jpg" if folder.endswith("2017") else f"COCO_{folder}_{int(number):012d}.jpg"
        put(root / "coco" / folder / file, jpeg(int(number)))


def coco_name(number: int, folder: str = "train2014") -> str:
    return f"{folder}/COCO_{folder}_{number:012d}.jpg"


def tar(file: Path, *members: tuple[str, bytes]) -> None:
    """A tar as webdataset writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
