"""Drafts: what a source reads out of annotations, and how a draft and its picture become a sample.

A source yields drafts in a fixed order without opening a picture. `finish` opens it, in whichever process: it learns
the size, scales and clips boxes, cleans texts, and says of everything it leaves out why. So annotations are read once
and pictures in parallel.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any

from PIL import Image

from minigptv2.boxes import Box
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.image_files import EXTENSION_OF, MAX_PIXELS, image_size
from minigptv2.shards.shard_file import IMAGE_MISSING, Rejected, Sample
from minigptv2.tasks import TASKS

MIN_SIDE_PX = 1.0
"""A box thinner than this after clipping says nothing."""
_REWRITTEN_FORMATS = ("GIF", "BMP", "TIFF")
"""Formats that some corpora hold (OCR-VQA's covers) and shards do not: the first frame is stored as PNG."""
_REWRITTEN_MAGIC = (b"GIF8", b"II*\0", b"MM\0*")
TOO_LARGE = "image over the limit of pixels"
HEAD_BYTES = 1 << 17
"""Holds the frame header of a JPEG behind a whole EXIF segment (64 KiB), which has the camera's small picture."""
_NO_KEY = re.compile(r"[^0-9A-Za-z_+=-]+")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture inside a tar: the file, and where its bytes lie."""

    file: str
    offset: int
    size: int

    def __reduce__(self) -> tuple[type[TarMember], tuple[Any, ...]]:  # as in `record.Turn`
        return TarMember, (self.file, self.offset, self.size)


Where = tuple[str, ...] | TarMember | bytes | None
Read = tuple[bytes | None, str, tuple[int, int] | None]
"""Bytes, extension and size in pixels of a picture; None and None without one."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One sample to be: turns with raw texts and boxes, and where its picture is.

    `image`: paths to try in order, a tar member, the bytes, or None for text. `frame`: width and height of what the
    boxes are given in, (1, 1) for normalised ones, None for the picture's own pixels. `separate`: the turns are
    questions of their own (`Record.separate`). `key` may hold any characters; `finish` makes them fit a tar.
    """

    key: str
    turns: tuple[Turn, ...]
    image: Where = None
    source: dict[str, str] = field(default_factory=dict)
    separate: bool = False
    frame: tuple[float, float] | None = None

    def __reduce__(self) -> tuple[type[Draft], tuple[Any, ...]]:  # as in `record.Turn`
        return Draft, (self.key, self.turns, self.image, self.source, self.separate, self.frame)

    @property
    def annotations(self) -> int:
        """What the corpus counts: questions where the turns are separate, else one."""
        return len(self.turns) if self.separate else 1


def finish(draft: Draft) -> tuple[Sample | None, list[Rejected]]:
    """The draft as a sample, and what of it was left out. None if nothing is left. The writer validates the record."""
    return _finish(draft, _read)


def find_rejections(draft: Draft) -> list[Rejected]:
    """What `finish` would leave out. Of a picture only the head is read where that says its size."""
    return _finish(draft, _read_head)[1]


def _finish(draft: Draft, read: Callable[[Where], Read]) -> tuple[Sample | None, list[Rejected]]:
    try:
        image, extension, size = read(draft.image)
    except DataError as error:
        looked_for = draft.image if str(error) == IMAGE_MISSING and isinstance(draft.image, tuple) else ()
        where = f"{draft.key} ({looked_for[0]})" if looked_for else draft.key
        return None, [Rejected(where, str(error), draft.annotations, looked_for)]
    kept, dropped = [], []
    for turn in draft.turns:
        try:
            kept.append(_fit(turn, size, draft.frame))
        except DataError as error:
            dropped.append(Rejected(turn.source.get("id", draft.key), str(error)))
            if not draft.separate:  # a conversation with a hole in it is not one
                return None, dropped
    if not kept:
        return None, dropped or [Rejected(draft.key, "no turns", 0)]
    width, height = size or (None, None)
    record = Record(tuple(kept), width, height, draft.source, draft.separate and len(kept) > 1)
    return Sample(safe_key(draft.key), record, image, extension), dropped


def drafts_of(samples: Iterator[Sample]) -> Iterator[Draft]:
    """Drafts of samples that are made already, with their pictures in memory."""
    for sample in samples:
        record = sample.record
        yield Draft(sample.key, record.turns, sample.image, record.source, record.separate)


def safe_key(key: str) -> str:
    """A key that any tar and any webdataset tool takes: no dot, no slash, no spaces."""
    return _NO_KEY.sub("_", key) or "_"


def clean(text: str) -> str:
    """The text without surrounding space, NULs and halves of surrogate pairs, which no UTF-8 file can hold."""
    if not text.isascii():
        text = text.encode("utf-8", "ignore").decode()
    return text.replace("\x00", "").strip()


def one_line(text: str) -> str:
    """`clean`, with every run of white space one space: for phrases and captions."""
    return " ".join(clean(text).split())


def _read_head(image: Where) -> Read:
    """`_read`, of the first bytes alone where `image_size` finds in them what it would find in all."""
    if isinstance(image, tuple):
        head = _load(image, HEAD_BYTES)
        if not _is_rewritten(head):
            with suppress(DataError):  # which more of it may mend
                kind, width, height = image_size(head, "image")
                return head, EXTENSION_OF[kind], (width, height)
    return _read(image)


def _is_rewritten(data: bytes) -> bool:
    return data[:4] in _REWRITTEN_MAGIC or data[:2] == b"BM"


def _read(image: Where) -> Read:
    """Bytes, extension and size in pixels. Raises `DataError` with a countable reason."""
    if image is None:
        return None, "jpg", None
    data = image if isinstance(image, bytes) else _read_member(image) if isinstance(image, TarMember) else _load(image)
    if _is_rewritten(data):
        data = _as_png(data)
    try:
        kind, width, height = image_size(data, "image")
    except DataError as error:
        raise DataError(TOO_LARGE if "limit" in str(error) else "image cannot be read") from error
    return data, EXTENSION_OF[kind], (width, height)


def _as_png(data: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(data), formats=_REWRITTEN_FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(TOO_LARGE)
            buffer = io.BytesIO()
            opened.convert("RGB").save(buffer, "PNG")
            return buffer.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("image cannot be read") from error


def _load(paths: tuple[str, ...], count: int = -1) -> bytes:
    for path in paths:
        try:
            with open(path, "rb") as stream:
                return stream.read(count)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: no path of a file holds a NUL or half a surrogate pair
            raise DataError("image cannot be read") from error
    raise DataError(IMAGE_MISSING)


def _read_member(member: TarMember) -> bytes:
    return os.pread(_opened(member.file).fileno(), member.size, member.offset)


@lru_cache(maxsize=4)
def _opened(file: str) -> IO[bytes]:
    """The open file, kept for the members that come next; closed when it is forgotten."""
    return open(file, "rb")


def _fit(turn: Turn, size: tuple[int, int] | None, frame: tuple[float, float] | None) -> Turn:
    """The turn with clean texts and boxes inside the picture. Raises `DataError` with a countable reason."""
    regions = tuple([_fit_region(region, size, frame) for region in turn.regions])
    shape = TASKS[turn.task].shape
    tidy = str if shape.spans else clean  # spans count characters: a source cleans before it counts
    answers = tuple([answer for answer in map(tidy, turn.answers) if answer and not answer.isspace()])
    question = None if turn.question is None else clean(turn.question)
    if turn.answers and not answers or not turn.answers and not turn.regions:
        raise DataError("empty answer")
    if question == "" or question is None and shape.question:
        raise DataError("empty question")
    return Turn(turn.task, question, answers, regions, turn.choices, turn.source)


def _fit_region(region: Region, size: tuple[int, int] | None, frame: tuple[float, float] | None) -> Region:
    if size is None:
        raise DataError("a box without an image")
    phrases = tuple(filter(None, map(one_line, region.phrases)))
    if not phrases:
        raise DataError("empty phrase")
    return Region(tuple([_fit_box(box, size, frame) for box in region.boxes]), phrases, region.span)


def _fit_box(box: Box, size: tuple[int, int], frame: tuple[float, float] | None) -> Box:
    width, height = size
    across, down = (width / frame[0], height / frame[1]) if frame else (1.0, 1.0)
    values = (box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)
    if not all(map(math.isfinite, values)):
        raise DataError("box is not finite")
    if values[0] >= values[2] or values[1] >= values[3]:
        raise DataError("empty or inverted box")
    clipped = Box(max(0.0, values[0]), max(0.0, values[1]), min(float(width), values[2]), min(float(height), values[3]))
    if clipped.x2 - clipped.x1 < MIN_SIDE_PX or clipped.y2 - clipped.y1 < MIN_SIDE_PX:
        inside = clipped.x1 < clipped.x2 and clipped.y1 < clipped.y2
        raise DataError("box thinner than a pixel" if inside else "box outside the image")
    return clipped
