"""Runs the cases of a format. `FORMATS` lists them: each draws a case and checks its outcome."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.corpora.fuzz import captions, coco, csv_rows, entries, tables, voc, yolo
from tests.corpora.fuzz.outcome import Case, problem_of
from tests.corpora.fuzz.photos import Photo, write_photos
from tests.corpora.miniatures.files import put
from tests.fuzzing import Found

Draw = Callable[[random.Random, Path, list[Photo]], tuple[str, Case]]
DRAWN: dict[str, Draw] = {
    "coco": coco.draw_case,
    "csv": csv_rows.draw_case,
    "yolo": yolo.draw_case,
    "voc": voc.draw_case,
    "captions": captions.draw_case,
    "table": tables.draw_case,
}
"""Formats whose cases are files or datasets, built as a user builds them."""
FORMATS = ("entries", *DRAWN)


def fuzz(name: str, numbers: Iterable[int], seed: int, folder: Path) -> Found:
    """The cases of a format with these numbers. `folder` is empty."""
    if name == "entries":
        return entries.fuzz(numbers, seed, folder)
    photos = write_photos(folder)
    _write_damaged(folder, photos)
    found = Found()
    for number in numbers:
        change, case = DRAWN[name](random.Random(f"{seed}/{number}"), folder, photos)
        try:
            problem = problem_of(case, folder / "shards")
        except Exception:  # noqa: BLE001 - a traceback is what is looked for
            problem = traceback.format_exc()
        found.by_change[change] += 1
        found.kept, found.refused = found.kept + (not case.fault), found.refused + bool(case.fault)
        if problem:
            found.wrong.append(f"case {number} ({change}): {problem}\n  {case}")
    return found


def _write_damaged(folder: Path, photos: list[Photo]) -> None:
    """The photos truncated, and files that are named like images and are none."""
    for photo in photos:
        data = (folder / photo.name).read_bytes()
        put(folder / "truncated" / photo.name, data[: -len(data) // 10])
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>not found</html>")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
