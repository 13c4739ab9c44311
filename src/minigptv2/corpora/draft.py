"""Defines drafts, which a source makes from annotations, and finishes a draft and its image to a sample.

A source yields drafts in a fixed order without opening images. `finish` opens the image, in any process: it reads the
size, scales and clips boxes, cleans texts, and gives a reason for everything it leaves out. So annotations are read
once, and images in parallel.
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
from itertools import chain
from typing import IO, Any

from PIL import Image

from minigptv2.boxes import Box
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.image_files import EXTENSION_OF, MAX_PIXELS, image_size
from minigptv2.shards.shard_file import IMAGE_MISSING, Rejected, Sample
from minigptv2.tasks import TASKS

MIN_SIDE_PX = 1.0
"""Minimum width and height of a box after clipping."""
_REWRITTEN_FORMATS = ("GIF", "BMP", "TIFF")
"""Formats of some corpora (such as OCR-VQA's covers) that shards do not support. The first frame is stored as PNG."""
_REWRITTEN_MAGIC = (b"GIF8", b"II*\0", b"MM\0*")
TOO_LARGE = "image over the limit of pixels"
HEAD_BYTES = 1 << 17
"""Enough for the frame header of a JPEG after a full EXIF segment (64 KiB) with the camera's thumbnail."""
_NO_KEY = re.compile(r"[^0-9A-Za-z_+=-]+")


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image inside a tar: the tar file, and the offset and size of the image's bytes."""

    file: str
    offset: int
    size: int

    def __reduce__(self) -> tuple[type[TarMember], tuple[Any, ...]]:  # as in `record.Turn`
        return TarMember, (self.file, self.offset, self.size)


Where = tuple[str, ...] | TarMember | bytes | None
Read = tuple[bytes | None, str, tuple[int, int] | None]
"""Bytes, extension and size in pixels of an image. Bytes and size are None without an image."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One sample before it is finished: turns with raw texts and boxes, and the location of its image.

    `image`: paths to try in order, a tar member, the bytes, or None for text. `frame`: width and height of the
    coordinate system of the boxes, (1, 1) for normalized boxes, None for pixels of the image. `separate`: the turns
    are independent questions (`Record.separate`). `key` may hold any characters. `finish` replaces those that do not
    fit a tar.
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
        """Number of annotations, as the corpus counts them: the number of questions if turns are separate, else one."""
        return len(self.turns) if self.separate else 1


def finish(draft: Draft) -> tuple[Sample | None, list[Rejected]]:
    """The draft as a sample (None if nothing is left), and what was left out. The writer validates the record."""
    return _finish(draft, _read)


def find_rejections(draft: Draft) -> list[Rejected]:
    """What `finish` would leave out. Only the beginning of an image is read if it contains the size."""
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
            if not draft.separate:  # a conversation with a missing turn is not stored
                return None, dropped
    if not kept:
        return None, dropped or [Rejected(draft.key, "no turns", 0)]
    width, height = size or (None, None)
    record = Record(tuple(kept), width, height, draft.source, draft.separate and len(kept) > 1)
    return Sample(safe_key(draft.key), record, image, extension), dropped


def drafts_of(samples: Iterator[Sample]) -> Iterator[Draft]:
    """Drafts of finished samples, with their images in memory."""
    for sample in samples:
        record = sample.record
        yield Draft(sample.key, record.turns, sample.image, record.source, record.separate)


def safe_key(key: str) -> str:
    """A key that every tar and every webdataset tool supports: no dot, no slash, no spaces."""
    return _NO_KEY.sub("_", key) or "_"


def encodable(text: str) -> str:
    """The text without NULs and halves of surrogate pairs, which UTF-8 cannot encode."""
    if not text.isascii():
        text = text.encode("utf-8", "ignore").decode()
    return text.replace("\x00", "")


def clean(text: str) -> str:
    """`encodable`, without surrounding space."""
    return encodable(text).strip()


def one_line(text: str) -> str:
    """`clean`, with every run of white space replaced by one space, for phrases and captions."""
    return " ".join(clean(text).split())


def _read_head(image: Where) -> Read:
    """Like `_read`, but reads only the first bytes if `image_size` finds the size in them."""
    if isinstance(image, tuple):
        head = _load(image, HEAD_BYTES)
        if not _is_rewritten(head):
            with suppress(DataError):  # the whole file may be valid
                kind, width, height = image_size(head, "image")
                return head, EXTENSION_OF[kind], (width, height)
    return _read(image)


def _is_rewritten(data: bytes) -> bool:
    return data[:4] in _REWRITTEN_MAGIC or data[:2] == b"BM"


def _read(image: Where) -> Read:
    """Bytes, extension and size in pixels. Raises `DataError` with one of a few reasons, which are counted."""
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
    for path in chain(paths, chain.from_iterable(map(_other_spellings, paths))):
        try:
            with open(path, "rb") as stream:
                return stream.read(count)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: the path holds a NUL or half a surrogate pair
            raise DataError("image cannot be read") from error
    raise DataError(IMAGE_MISSING)


def _other_spellings(path: str) -> list[str]:
    """The path with other spellings of its extension: `a.JPG` and `a.jpeg` for `a.jpg`."""
    stem, extension = os.path.splitext(path)
    jpeg = (".jpg", ".jpeg") if extension.lower() in (".jpg", ".jpeg") else (extension.lower(),)
    return [stem + one for kind in jpeg for one in (kind, kind.upper()) if one != extension]


def _read_member(member: TarMember) -> bytes:
    return os.pread(_opened(member.file).fileno(), member.size, member.offset)


@lru_cache(maxsize=4)
def _opened(file: str) -> IO[bytes]:
    """The open file, kept open for the next members, and closed when it leaves the cache."""
    return open(file, "rb")


def _fit(turn: Turn, size: tuple[int, int] | None, frame: tuple[float, float] | None) -> Turn:
    """The turn with clean texts and with boxes inside the image. Raises `DataError` with one of a few reasons."""
    regions = tuple([_fit_region(region, size, frame) for region in turn.regions])
    shape = TASKS[turn.task].shape
    tidy = str if shape.spans else clean  # spans count characters of the text, which the source has cleaned
    answers = tuple(map(tidy, turn.answers))
    given = tuple([answer for answer in answers if answer and not answer.isspace()])
    question = None if turn.question is None else clean(turn.question)
    if turn.answers and not given or not turn.answers and not turn.regions:
        raise DataError("empty answer")
    if question == "" or question is None and shape.question:
        raise DataError("empty question")
    return Turn(turn.task, question, answers if shape.blank_answers else given, regions, turn.choices, turn.source)


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
