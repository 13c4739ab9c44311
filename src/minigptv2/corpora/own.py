"""Makes a corpus of a user's file: JSON lines, a CSV of images and captions, a COCO detection file, or LLaVA's list.

`docs/your-own-data.md` describes each format. Image paths are relative to the file's folder (or to `--root`). Every
mistake is reported with its line and its fix. A build stops and prints the first 30, unless they are to be skipped.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from minigptv2.corpora.corpus import MIXED, CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, find_rejections
from minigptv2.corpora.own_entry import NORMALISED, XYWH
from minigptv2.corpora.own_files import OwnEntry, read
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

MAX_SHOWN = 30
MAX_BOXES_SHOWN = 8
THREADS, CHUNK = 16, 64
"""Threads that open images in a check, and entries per task. Processes were measured and are slower: starting them and
sending drafts costs more than it saves. Sixteen threads hide nine tenths of the time of a disk or a network that needs
1 ms per image. They do not help for images in memory, where the interpreter lock is held."""
FORMATS = {
    ".jsonl": "JSON lines",
    ".csv": "a CSV of image and caption",
    ".tsv": "a CSV with tabs",
    ".json": "a COCO detection file or a list of conversations",
}


def own_corpus(file: Path, *, skip_faults: bool = False, ignore_extra: bool = False) -> CorpusSpec:
    """The corpus of a user's file, named after the file. Raises `DataError` for an unknown format.

    Reading its drafts raises `DataError` with every mistake. With `skip_faults` faulty lines are left out and counted.
    `ignore_extra` passes over unknown keys of conversations that hold no image, and counts them.
    """
    if file.suffix.lower() not in FORMATS:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in FORMATS.items())
        raise DataError(f"{file}: unknown extension '{file.suffix}'. Supported: {known}")
    if not os.path.isfile(file):  # Path.is_file raises for names that are too long
        raise DataError(f"{file} is a folder; pass a file in it" if os.path.isdir(file) else f"{file} does not exist")
    return CorpusSpec(
        name=re.sub(r"[^0-9A-Za-z_-]+", "_", file.stem),
        title=f"your own: {FORMATS[file.suffix.lower()]}",
        drafts=partial(_drafts, file=file, skip_faults=skip_faults, ignore_extra=ignore_extra),
        tasks=MIXED,
        expected={"train": None},
        counted="entries",
        license="yours",
        download="it is yours",
        is_own=True,
    )


def _drafts(
    raw: Raw, split: str, *, file: Path, skip_faults: bool, ignore_extra: bool = False
) -> Iterator[Draft | Rejected]:
    raw = replace(raw, ignore_extra=ignore_extra)
    if not skip_faults:
        check(file, replace(raw, notes=Counter()))  # the notes of the build count each entry once
    for line in read(file, raw):
        if line.draft is not None:
            yield line.draft
        else:
            yield Rejected(line.name, line.problem)


def check(file: Path, raw: Raw) -> int:
    """The number of entries of the file. Raises `DataError` with every mistake and its fix.

    Several threads open the images. Memory does not grow with the file.
    """
    shown: list[str] = []
    number = bad = mistakes = 0
    shape = dict(desc=f"checking {file.name}", unit=" entries", smoothing=0.05, leave=False)
    with warnings.catch_warnings(), tqdm(**shape, disable=not sys.stderr.isatty()) as bar:
        # `image_files` also ignores it for each image, but its state is global and threads would restore it
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for size, found in _check_chunks(read(file, raw)):
            number, bad, mistakes = number + size, bad + len(found), mistakes + sum(map(len, found))
            shown += chain.from_iterable(found)
            del shown[MAX_SHOWN:]
            bar.update(size)
    if bad:
        more = [f"  and {mistakes - MAX_SHOWN} more"] if mistakes > MAX_SHOWN else []
        head = f"{file}: {bad} of {number} entries cannot be used. Fix them, or leave them out with --skip-faults:"
        raise DataError("\n".join([head, *shown, *more]))
    if number == 0:
        raise DataError(f"{file}: is empty")
    return number


def _check_chunks(lines: Iterator[OwnEntry]) -> Iterator[tuple[int, list[list[str]]]]:
    """For each chunk of entries, in order: their number, and the mistakes of each entry that has any."""
    chunks = iter(lambda: list(islice(lines, CHUNK)), [])
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[tuple[int, list[list[str]]]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_check_chunk, chunk))
                if len(pending) > 2 * THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _check_chunk(lines: list[OwnEntry]) -> tuple[int, list[list[str]]]:
    return len(lines), [found for found in map(_mistakes, lines) if found]


def _mistakes(line: OwnEntry) -> list[str]:
    """What is wrong with an entry and its image."""
    if line.draft is None:
        return [f"  {line.name}: {line.problem}"] if line.mistake else []
    return [f"  {line.name}: {_advice(one, line.draft)}" for one in find_rejections(line.draft)]


def _advice(rejected: Rejected, draft: Draft) -> str:
    reason = rejected.reason
    if rejected.looked_for:
        paths = " and ".join(rejected.looked_for)
        return f"{reason}; looked for {paths}. Give its path relative to the file's folder, or set --root"
    if reason.startswith(("box", "empty or inverted box")):
        boxes = [str(box) for turn in draft.turns for region in turn.regions for box in region.boxes]
        more = f" and {len(boxes) - MAX_BOXES_SHOWN} more" if len(boxes) > MAX_BOXES_SHOWN else ""
        change = (
            "bbox is x, y, width, height in pixels of the image"
            if draft.separate  # of a COCO file
            else f'Boxes are x1, y1, x2, y2 in pixels of the image. Add "boxes_in": "{XYWH}" for x, y, width, height '
            f'or "{NORMALISED}" for values from 0 to 1'
        )
        return f"{reason}: {', '.join(boxes[:MAX_BOXES_SHOWN])}{more}. {change}"
    return reason
