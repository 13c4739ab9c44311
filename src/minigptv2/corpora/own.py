"""Your own data as a corpus: JSON lines, a CSV of pictures and captions, a COCO detection file, or LLaVA's list.

`docs/your-own-data.md` shows each. Pictures are looked for beside the file (or below `--root`). Every mistake is
named with its line and what to change; a build stops and shows the first thirty unless told to skip them.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, find_rejections
from minigptv2.corpora.own_entry import NORMALISED, XYWH
from minigptv2.corpora.own_files import Line, read
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

MAX_SHOWN = 30
MAX_BOXES_SHOWN = 8
THREADS, CHUNK = 16, 64
"""Who opens pictures in a check, and entries that one takes. Of a picture in memory all but the system's part holds the
lock: threads gain nothing there and lose nothing, and processes (measured) lose more than they gain by being started
and sent drafts. Of a disk or a network that takes 1 ms for a picture sixteen threads hide nine tenths."""
FORMATS = {
    ".jsonl": "JSON lines",
    ".csv": "a CSV of image and caption",
    ".tsv": "a CSV with tabs",
    ".json": "a COCO detection file or LLaVA's list of conversations",
}


def own_corpus(file: Path, *, skip_bad: bool = False) -> CorpusSpec:
    """The corpus that a file of one's own makes, named after the file. Raises `DataError` for an unknown format.

    Its drafts raise `DataError` with every mistake, or with `skip_bad` leave the mistaken lines out and count them.
    """
    if file.suffix.lower() not in FORMATS:
        known = "; ".join(f"{suffix}: {what}" for suffix, what in FORMATS.items())
        raise DataError(f"{file}: the ending says the format, and '{file.suffix}' is none of {known}")
    if not os.path.isfile(file):  # Path.is_file raises for names that are too long
        raise DataError(f"{file} is a folder; name a file in it" if os.path.isdir(file) else f"there is no {file}")
    return CorpusSpec(
        name=re.sub(r"[^0-9A-Za-z_-]+", "_", file.stem),
        title=f"your own: {FORMATS[file.suffix.lower()]}",
        drafts=partial(_drafts, file=file, skip_bad=skip_bad),
        tasks=("mixed",),
        expected={"train": None},
        counted="entries",
        license="yours",
        download="it is yours",
        is_own=True,
    )


def _drafts(raw: Raw, split: str, *, file: Path, skip_bad: bool) -> Iterator[Draft | Rejected]:
    if not skip_bad:
        check(file, raw)
    for line in read(file, raw):
        if line.draft is not None:
            yield line.draft
        else:
            yield Rejected(line.name, line.problem)


def check(file: Path, raw: Raw) -> int:
    """How many entries the file has, none a mistake. Raises `DataError` with each mistake and what to change.

    Several threads open the pictures; what is held at a time does not grow with the file.
    """
    shown: list[str] = []
    number = bad = mistakes = 0
    shape = dict(desc=f"checking {file.name}", unit=" entries", smoothing=0.05, leave=False)
    with warnings.catch_warnings(), tqdm(**shape, disable=not sys.stderr.isatty()) as bar:
        # `images` switches this one off around each picture, which threads would do to each other
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for size, found in _looked_at(read(file, raw)):
            number, bad, mistakes = number + size, bad + len(found), mistakes + sum(map(len, found))
            shown += chain.from_iterable(found)
            del shown[MAX_SHOWN:]
            bar.update(size)
    if bad:
        more = [f"  and {mistakes - MAX_SHOWN} more"] if mistakes > MAX_SHOWN else []
        said = f"{file}: {bad} of {number} entries cannot be used; mend them, or leave them out with --skip-faults:"
        raise DataError("\n".join([said, *shown, *more]))
    if number == 0:
        raise DataError(f"{file}: is empty")
    return number


def _looked_at(lines: Iterator[Line]) -> Iterator[tuple[int, list[list[str]]]]:
    """Of each chunk of lines, in order: how many they are, and the mistakes of each that has any."""
    chunks = iter(lambda: list(islice(lines, CHUNK)), [])
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[tuple[int, list[list[str]]]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_look_at, chunk))
                if len(pending) > 2 * THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _look_at(lines: list[Line]) -> tuple[int, list[list[str]]]:
    return len(lines), [found for found in map(_mistakes, lines) if found]


def _mistakes(line: Line) -> list[str]:
    """What is wrong with an entry, its picture opened."""
    if line.draft is None:
        return [f"  {line.name}: {line.problem}"] if line.mistake else []
    return [f"  {line.name}: {_advice(one, line.draft)}" for one in find_rejections(line.draft)]


def _advice(loss: Rejected, draft: Draft) -> str:
    reason = loss.reason
    if loss.looked_for:
        return f"{reason}; looked for {' and '.join(loss.looked_for)}. Give its path from the file's folder, or --root"
    if reason.startswith(("box", "empty or inverted box")):
        boxes = [str(box) for turn in draft.turns for region in turn.regions for box in region.boxes]
        more = f" and {len(boxes) - MAX_BOXES_SHOWN} more" if len(boxes) > MAX_BOXES_SHOWN else ""
        change = (
            "bbox is x, y, width, height in pixels of the picture"
            if draft.separate  # of a COCO file
            else f'Boxes are x1, y1, x2, y2 in pixels of the picture; say "boxes_in": "{XYWH}" for x, y, width, height '
            f'or "{NORMALISED}" for shares of 0..1'
        )
        return f"{reason}: {', '.join(boxes[:MAX_BOXES_SHOWN])}{more}. {change}"
    return reason
