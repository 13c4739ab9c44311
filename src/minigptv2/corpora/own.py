"""Makes a corpus of a user's file or folder, in one of the `formats`.

`docs/your-own-data.md` describes each format. Image paths are relative to the file's folder (or to `--root`). Every
mistake is reported with its place and its fix. A build stops and prints the first 30, unless they are to be skipped.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from minigptv2.corpora.box_census import BoxCensus, GivenBox
from minigptv2.corpora.build_corpus import MAX_SHOWN, list_mistakes
from minigptv2.corpora.corpus import MIXED, CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, examine
from minigptv2.corpora.formats import FORMATS, Format, OwnEntry, format_of
from minigptv2.corpora.frames import CENTERS, CORNERS, SIZES
from minigptv2.corpora.own_entry import NORMALISED, XYWH
from minigptv2.corpora.raw import Raw
from minigptv2.errors import ConfigError, DataError
from minigptv2.progress_bars import progress_bar
from minigptv2.shards.image_header import MAX_PIXELS

MAX_BOXES_SHOWN = 8
DECODE_S = 20.0
"""Seconds for which images are decoded to name damaged ones together with other mistakes."""
THREADS, CHUNK = 16, 64
"""Threads that open images in a check, and entries per task. Processes were measured and are slower: starting them and
sending drafts costs more than it saves. Sixteen threads hide nine tenths of the time of a disk or a network that needs
1 ms per image. They do not help for images in memory, where the interpreter lock is held."""
_Result = tuple[list[str], list[GivenBox]]
_FORMS = {
    SIZES: "bbox is x, y, width, height in pixels of the image",
    CORNERS: "bndbox is xmin, ymin, xmax, ymax in pixels of the image",
    CENTERS: "A row is a class and x center, y center, width, height, each as a share of the image's side",
}
"""How files of labeling tools give boxes, in words of these files."""


@dataclass(frozen=True)
class OwnOptions:
    """What is accepted of a user's file."""

    skip_faults: bool = False
    """Leave faulty lines out and count them. Otherwise they are an error."""
    cut_boxes: bool = False
    """Cut boxes at the border of their image however many leave it. Otherwise more than a few are an error."""
    ignore_extra: bool = False
    """Pass over unknown keys of conversations that hold no image, and count them."""
    max_pixels: int = MAX_PIXELS
    format: str = ""
    """The name of the format (`formats.FORMATS`). Empty: the one that matches."""
    negatives: int = 0
    """Classes that an image does not have, for which detection files also ask: so many per image."""
    columns: tuple[tuple[str, str], ...] = ()
    """Keys of an entry, each with the column of a table that holds it."""


def own_corpus(path: Path, options: OwnOptions = OwnOptions()) -> CorpusSpec:
    """The corpus of a user's file or folder, named after it. Raises `DataError` for an unknown format.

    Reading its drafts raises `DataError` with every mistake that `options` do not accept.
    """
    found = format_of(path, options.format)
    if options.negatives and not found.has_classes:
        named = ", ".join(one.name for one in FORMATS.values() if one.has_classes)
        raise ConfigError(f"--negatives is for the formats {named}; {path} is {found.title}")
    folder = path if path.is_dir() else path.parent
    name = folder.resolve().name if path.is_dir() or found.describes_folder else path.stem
    if options.columns and not found.has_columns:
        raise ConfigError(f"--columns names columns of tables, but {path} is read as {found.title}")
    return CorpusSpec(
        name=re.sub(r"[^0-9A-Za-z_-]+", "_", name),
        title=f"your own: {found.title}",
        drafts=partial(_drafts, path=path, read_as=found, options=options),
        tasks=MIXED,
        expected={"train": None},
        counted="entries",
        license="yours",
        is_own=True,
        has_any_split=found.has_splits,
        strict=not options.skip_faults,
    )


def _drafts(raw: Raw, split: str, *, path: Path, read_as: Format, options: OwnOptions) -> Iterator[Draft | Rejected]:
    raw = replace(
        raw,
        ignore_extra=options.ignore_extra,
        split=split,
        negatives=options.negatives,
        columns=options.columns,
    )
    if not (options.skip_faults and options.cut_boxes):
        check(path, raw, options)
    for line in read_as.read(path, raw):
        if line.draft is not None:
            yield line.draft
        else:
            yield Rejected(line.name, line.problem)


@dataclass
class _Findings:
    """What a check found: entries, those with mistakes, the first mistakes as lines, and the boxes of the others."""

    complete: bool = True
    entries: int = 0
    bad: int = 0
    mistakes: int = 0
    lines: list[str] = field(default_factory=list)
    boxes: BoxCensus = field(default_factory=BoxCensus)


def check(file: Path, raw: Raw, options: OwnOptions = OwnOptions()) -> int:
    """The number of entries of the file. Raises `DataError` with every mistake and its fix.

    Several threads open the images. Only their beginning is read, and the writer decodes them, unless there is a
    mistake: then they are decoded, for a limited time, so that damaged images are named together with it.
    """
    raw = replace(raw, notes=Counter())  # the notes of the build count each entry once
    found = _check_all(file, raw, options)
    if found.bad and not options.skip_faults:
        decoded = _check_all(file, raw, options, decode_s=DECODE_S)
        found = decoded if decoded.complete else found
        raise DataError(_mistakes_of(file, found))
    if found.boxes.is_suspicious and not options.cut_boxes:
        raise DataError(
            f"{file}: {found.boxes.problem()}. Correct the boxes, or cut them at the border with --cut-boxes"
        )
    if found.entries == 0:
        raise DataError(f"{file}: is empty")
    return found.entries


def _mistakes_of(file: Path, found: _Findings) -> str:
    bad = f"{file}: {found.bad} of {found.entries} entries cannot be used"
    head = f"{bad}. Fix them, or leave them out with --skip-faults:"
    cause = [found.boxes.problem()] if found.boxes.is_suspicious else []
    return "\n".join([list_mistakes(head, found.lines, found.mistakes), *cause])


def _check_all(file: Path, raw: Raw, options: OwnOptions, decode_s: float = 0.0) -> _Findings:
    """What is found in all entries. With `decode_s` images are decoded, and the check ends after so many seconds."""
    found, ends = _Findings(), time.monotonic() + decode_s
    shape: dict[str, Any] = dict(desc=f"checking {file.name}", unit=" entries", smoothing=0.05, leave=False)
    examined = partial(_check_chunk, max_pixels=options.max_pixels, decode=decode_s > 0)
    with progress_bar(**shape) as bar:
        for results in _check_chunks(format_of(file, options.format).read(file, raw), examined):
            for mistakes, boxes in results:
                found.entries += 1
                found.bad += bool(mistakes)
                found.mistakes += len(mistakes)
                found.lines += mistakes[: MAX_SHOWN - len(found.lines)]
                if not (mistakes and options.skip_faults):
                    found.boxes.add(boxes)
            bar.update(len(results))
            if decode_s and time.monotonic() > ends:
                found.complete = False
                break
    return found


def _check_chunks(
    lines: Iterator[OwnEntry], examined: Callable[[list[OwnEntry]], list[_Result]]
) -> Iterator[list[_Result]]:
    """The results of each chunk of entries, in order."""
    chunks = iter(lambda: list(islice(lines, CHUNK)), [])
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[list[_Result]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(examined, chunk))
                if len(pending) > 2 * THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _check_chunk(lines: list[OwnEntry], *, max_pixels: int, decode: bool) -> list[_Result]:
    """For each entry what is wrong with it and its image, and its boxes."""
    results: list[_Result] = []
    for line in lines:
        if line.draft is None:
            results.append(([f"  {line.name}: {line.problem}"] if line.mistake else [], []))
        else:
            one = examine(line.draft, decode=decode, max_pixels=max_pixels)
            results.append(([_line_of(rejected, line) for rejected in one.rejected], one.boxes))
    return results


def _line_of(rejected: Rejected, line: OwnEntry) -> str:
    assert line.draft is not None
    where = rejected.where if rejected.is_image_fault else line.name
    return f"  {where}: {_advice(rejected, line.draft)}"


def _advice(rejected: Rejected, draft: Draft) -> str:
    reason = rejected.reason
    if rejected.looked_for:
        paths = " and ".join(rejected.looked_for)
        return f"{reason}; looked for {paths}. Give its path relative to the file's folder, or set --root"
    if reason.startswith(("box", "empty or inverted box")):
        boxes = [str(box) for turn in draft.turns for region in turn.regions for box in region.boxes]
        more = f" and {len(boxes) - MAX_BOXES_SHOWN} more" if len(boxes) > MAX_BOXES_SHOWN else ""
        change = (
            _FORMS[draft.form]
            if draft.separate  # of a labeling tool
            else f'Boxes are x1, y1, x2, y2 in pixels of the image. Add "boxes_in": "{XYWH}" for x, y, width, height '
            f'or "{NORMALISED}" for values from 0 to 1'
        )
        return f"{reason}: {', '.join(boxes[:MAX_BOXES_SHOWN])}{more}. {change}"
    return reason
