"""Reads GRIT-20M: web captions whose phrases and expressions have boxes, as grounded captions, refer and identify.

Source: Peng et al. 2023 (huggingface.co/datasets/zzliang/GRIT). License: MS-PL (list), images under their own.
Layouts: the tars that img2dataset writes with these columns kept (`--save_additional_columns`) and no image padded or
cropped, or its parquet files with the images inside. `noun_chunks` and `ref_exps` are lists of
`[start, end, x1, y1, x2, y2, score]`: characters of the caption, corners normalized to the image. Links stop working
over time, so the count of a download is not checked. The list has 20.5 million rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from minigptv2.boxes import Box
from minigptv2.corpora import img2dataset as tars
from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.record import Region, Turn
from minigptv2.shards.tar_files import find_tars
from minigptv2.tasks import TASKS

DOWNLOAD = tars.img2dataset(
    "grit-20m",
    "grit",
    format="parquet",
    url="url",
    caption="caption",
    more='--save_additional_columns \'["noun_chunks","ref_exps"]\' ',
)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for boxes, which come from a detector.

    Boxes below the thresholds are not counted as dropped, since reports for 20.5 million images would hide damaged
    data. An image without any remaining box is counted.
    """

    min_score: float = 0.65
    """Minimum confidence of a box, the filter of Kosmos-2."""
    min_area: float = 0.0025
    """Minimum share of the image: 22 px of 448 per side. Smaller boxes cannot be represented on a grid of 100."""
    max_boxes: int = 8
    """Maximum number of boxes per phrase. A phrase with more boxes is a crowd."""


@dataclass(frozen=True, slots=True)
class Found:
    """A span of the caption and its boxes, normalized to the image."""

    start: int
    end: int
    boxes: tuple[Box, ...]


def found_in(caption: str, entries: Any, thresholds: Thresholds) -> list[Found]:
    """The spans with trusted boxes, by start, longer spans first. Boxes of the same span are joined."""
    together: dict[tuple[int, int], list[Box]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, list) or len(entry) != 7 or not all(_is_number(value) for value in entry):
            continue
        start, end, box = int(entry[0]), int(entry[1]), Box(*(min(1.0, max(0.0, float(c))) for c in entry[2:6]))
        trusted = entry[6] >= thresholds.min_score and box.area >= thresholds.min_area
        if trusted and 0 <= start < end <= len(caption) and caption[start:end].strip():
            together.setdefault((start, end), []).append(box)
    found = []
    for (start, end), boxes in sorted(together.items(), key=lambda item: (item[0][0], -item[0][1])):
        unique = tuple(dict.fromkeys(boxes))
        if len(unique) <= thresholds.max_boxes:
            found.append(Found(start, end, unique))
    return found


def apart(found: list[Found]) -> list[Found]:
    """Spans that do not overlap. Of two that overlap, the earlier, longer one is kept."""
    kept: list[Found] = []
    for one in found:
        if not kept or kept[-1].end <= one.start:
            kept.append(one)
    return kept


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)


def grounded_turns(caption: str, facts: dict[str, Any], thresholds: Thresholds) -> tuple[Turn, ...]:
    """One turn: the caption with boxes for its noun phrases, which must not overlap."""
    regions = [
        Region(one.boxes, (caption[one.start : one.end],), (one.start, one.end))
        for one in apart(found_in(caption, _plain(facts.get("noun_chunks")), thresholds))
    ]
    return (Turn("grounding", answers=(caption,), regions=tuple(regions)),) if regions else ()


def expression_turns(caption: str, facts: dict[str, Any], thresholds: Thresholds, task: str) -> tuple[Turn, ...]:
    """One turn per referring expression with exactly one box. Expressions may overlap, since each is a question."""
    found = found_in(caption, _plain(facts.get("ref_exps")), replace(thresholds, max_boxes=1))
    return tuple(Turn(task, regions=(Region(one.boxes, (caption[one.start : one.end],)),)) for one in found)


def drafts(raw: Raw, split: str, *, task: str, thresholds: Thresholds) -> Iterator[Draft | Rejected]:
    """One draft per image: its grounded caption, or its expressions as separate turns."""
    for entry in _entries(raw):
        if isinstance(entry, Rejected):
            yield entry
            continue
        if _reshaped(entry.facts):
            yield Rejected(entry.key, "picture was padded or cropped: boxes no longer fit")
            continue
        try:
            caption = entry.caption
        except DataError as error:  # its characters cannot be counted as the boxes count them
            yield Rejected(entry.key, str(error))
            continue
        if entry.has_mark:
            yield Rejected(entry.key, "its caption contains a byte order mark, after which boxes do not count")
            continue
        grounded = TASKS[task].shape.spans
        write = grounded_turns if grounded else partial(expression_turns, task=task)
        turns = write(caption, entry.facts, thresholds)
        if turns:
            source = {"corpus": raw.corpus, "id": entry.key}
            yield Draft(entry.key, turns, entry.image, source, separate=not grounded, frame=(1.0, 1.0))
        else:
            yield Rejected(entry.key, "no trusted box")


def _reshaped(facts: dict[str, Any]) -> bool:
    """Whether the picture, by img2dataset's account, has another shape than the one that the boxes are shares of.

    Each side may be rounded by a pixel: some scale s has |width - s * original_width| <= 1, and so for the height.
    """
    width, height = facts.get("width"), facts.get("height")
    before_width, before_height = facts.get("original_width"), facts.get("original_height")
    if not (_is_number(width) and _is_number(height) and _is_number(before_width) and _is_number(before_height)):
        return False  # img2dataset did not look into the picture (`--disable_all_reencoding`): it is the original
    return abs(width * before_height - height * before_width) > before_width + before_height


def _entries(raw: Raw) -> Iterator[tars.Entry | Rejected]:
    has_tars = raw.has("grit") and find_tars(raw.root / "grit").tars
    for file in tars.tars_of(raw, "grit") if has_tars else raw.glob("grit/*.parquet", "grit/*/*.parquet"):
        yield from _rows(file) if file.suffix == ".parquet" else tars.entries(file, raw)


def _rows(file: Path) -> Iterator[tars.Entry | Rejected]:
    """The rows of a parquet file that img2dataset wrote, pictures in the column `jpg`."""
    if find_spec("pyarrow") is None:
        raise DataError(f"{file}: reading parquet takes pip install 'minigptv2[corpora]'")
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    if "jpg" not in table.schema_arrow.names:
        raise DataError(
            f"{file}: has no column jpg: it is the list of links. Put the lists into grit-20m/ and load the pictures: "
            f"{DOWNLOAD}"
        )
    for batch in table.iter_batches(batch_size=256):
        for row in batch.to_pylist():
            image = row.pop("jpg")
            key = f"{file.stem}-{row.get('key') or row.get('id')}"
            yield tars.Entry(key, row, image=image) if image else Rejected(key, "no image in the file")


def _plain(value: Any) -> Any:
    """A column of lists, which some versions of img2dataset keep as text; None where the text is no JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _row(name: str, title: str, task: str) -> CorpusSpec:
    return CorpusSpec(
        name=name,
        title=f"GRIT-20M, {title}",
        drafts=partial(drafts, task=task, thresholds=Thresholds()),
        tasks=(task,),
        expected={"train": None},
        counted="turns",
        license="MS-PL (list), pictures their own",
        stages=(1,),
        download=f"the list, grit-20m/ of https://huggingface.co/datasets/zzliang/GRIT. Then in the root `{DOWNLOAD}`",
        size="1.5 TB whole",
        samples_per_shard=5000,
    )


CORPORA = (
    _row("grit_caption", "grounded caption", "grounding"),
    _row("grit_refer", "refer", "refer"),
    _row("grit_identify", "identify", "identify"),
)
