"""Defines drafts, which a source makes from annotations, and finishes a draft and its image to a sample.

A source yields drafts in a fixed order without opening images. `finish` opens the image, in any process: it reads the
size, scales and clips boxes, cleans texts, and gives a reason for everything it leaves out. So annotations are read
once, and images in parallel.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import IO, Any

from minigptv2.boxes import Box
from minigptv2.corpora.box_census import TOLERANCE_PX, GivenBox, overshoot
from minigptv2.corpora.frames import CORNERS, CUT, ROUNDED, Frame, Size, frame_of
from minigptv2.errors import DataError
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.image_convert import as_png, is_converted
from minigptv2.shards.image_files import EXTENSION_OF, check_image, check_size, read_header
from minigptv2.shards.image_frames import LATER_FRAMES, has_more_frames
from minigptv2.shards.image_header import MAX_PIXELS, ImageFault, ImageHeader, Incomplete, TooLarge, parse_header
from minigptv2.shards.shard_file import BOXES, IMAGE_MISSING, Rejected, Sample
from minigptv2.tasks import TASKS

MIN_SIDE_PX = 1.0
"""Minimum width and height of a box after clipping."""
HEAD_BYTES = 1 << 17
"""Enough for the headers of a JPEG with a full EXIF segment (64 KiB), and its thumbnail."""
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


@dataclass(frozen=True, slots=True)
class Read:
    """An image: its bytes, path, extension and header, or what is wrong with it. All are empty without an image.

    `later_frames`: the file has several frames or pages, of which this is the first.
    """

    data: bytes | None = None
    path: str = ""
    extension: str = "jpg"
    header: ImageHeader | None = None
    fault: str = ""
    later_frames: bool = False


@dataclass(frozen=True, slots=True)
class Examined:
    """A draft's sample, if anything is left, what was left out, and all boxes with their frame."""

    sample: Sample | None
    rejected: list[Rejected]
    boxes: list[GivenBox]


@dataclass(frozen=True, slots=True)
class Draft:
    """One sample before it is finished: turns with raw texts and boxes, and the location of its image.

    `image`: paths to try in order, a tar member, the bytes, or None for text. `frame`: width and height of the
    coordinate system of the boxes, (1, 1) for normalized boxes, None for pixels of the image. `separate`: the turns
    are independent questions (`Record.separate`). `key` may hold any characters. `finish` replaces those that do not
    fit a tar. `stated`: size of the image in pixels that the annotations state, which decides the frame of the boxes
    (`frames.frame_of`). `label` names the draft in messages instead of the key, and `box_names` its boxes in order.
    `form`: how the file gives boxes, which are corners here. `upright`: boxes whose frame the size does not tell are in
    the upright image, as a person sees it. Otherwise they are in the image as stored, as public corpora have it.
    """

    key: str
    turns: tuple[Turn, ...]
    image: Where = None
    source: dict[str, str] = field(default_factory=dict)
    separate: bool = False
    frame: tuple[float, float] | None = None
    stated: Size | None = None
    label: str = ""
    box_names: tuple[str, ...] = ()
    form: str = CORNERS
    upright: bool = False

    def __reduce__(self) -> tuple[type[Draft], tuple[Any, ...]]:  # as in `record.Turn`
        fields = (self.key, self.turns, self.image, self.source, self.separate, self.frame)
        return Draft, (*fields, self.stated, self.label, self.box_names, self.form, self.upright)

    @property
    def has_boxes(self) -> bool:
        """Whether any turn has a box."""
        return any(region.boxes for turn in self.turns for region in turn.regions)

    @property
    def annotations(self) -> int:
        """Number of annotations, as the corpus counts them: the number of questions if turns are separate, else one."""
        return len(self.turns) if self.separate else 1


def finish(draft: Draft) -> tuple[Sample | None, list[Rejected]]:
    """The draft as a sample (None if nothing is left), and what was left out. The writer validates record and image."""
    examined = _finish(draft, _read(draft.image))
    return examined.sample, examined.rejected


def examine(draft: Draft, *, decode: bool = False, max_pixels: int = MAX_PIXELS) -> Examined:
    """What `finish` and the writer would leave out, and where the boxes lie.

    With `decode` images are decoded as the writer does. Otherwise only the beginning of an image is read if it contains
    the size.
    """
    read = _read(draft.image) if decode else _read_head(draft)
    examined = _finish(draft, read)
    if read.header is None or read.data is None:
        return examined
    try:
        check_size(read.header, max_pixels)
        if decode:
            check_image(read.data, "", max_pixels=max_pixels)
    except DataError as error:
        reason = str(error).removeprefix(": ") + (f"; {error.advice}" if isinstance(error, TooLarge) else "")
        fault = Rejected(_origin(draft, read.path), reason, draft.annotations, is_image_fault=True)
        return Examined(None, [*examined.rejected, fault], examined.boxes)
    return examined


def _finish(draft: Draft, read: Read) -> Examined:
    origin = _origin(draft, read.path)
    try:
        if read.fault:
            raise DataError(read.fault)
        header = read.header
        frame = None if header is None else _frame(draft, header)
    except DataError as error:
        looked_for = draft.image if read.fault == IMAGE_MISSING and isinstance(draft.image, tuple) else ()
        where = _origin(draft, looked_for[0]) if looked_for else origin
        return Examined(None, [Rejected(where, str(error), draft.annotations, looked_for, not looked_for)], [])
    boxes = [] if frame is None else _given_boxes(draft, frame)
    kept, dropped, counts = [], [], Counter[str]()
    for turn in draft.turns:
        try:
            kept.append(_fit(turn, frame, counts))
        except DataError as error:
            dropped.append(Rejected(turn.source.get("id", draft.label or draft.key), str(error)))
            if not draft.separate:  # a conversation with a missing turn is not stored
                return Examined(None, dropped, boxes)
    if not kept:
        return Examined(None, dropped or [Rejected(draft.label or draft.key, "no turns", 0)], boxes)
    width, height = (None, None) if header is None else (header.width, header.height)
    record = Record(tuple(kept), width, height, draft.source, draft.separate and len(kept) > 1)
    if frame is not None and frame.correction:
        counts[frame.correction] += 1
    if read.later_frames:
        counts[LATER_FRAMES] += 1
    return Examined(
        Sample(safe_key(draft.key), record, read.data, read.extension, origin, dict(counts)), dropped, boxes
    )


def _frame(draft: Draft, header: ImageHeader) -> Frame:
    if not draft.has_boxes:
        return Frame(header.width, header.height)
    return frame_of(header, draft.frame, draft.stated, upright_first=draft.upright)


def _origin(draft: Draft, path: str) -> str:
    """Name of a draft and its image in messages: `line 2: a.jpg`, or `00000002 (a.jpg)` for a corpus without lines."""
    if draft.label:
        named = not path or path in draft.label or path.endswith(draft.label)
        return draft.label if named else f"{draft.label}: {path}"
    return f"{draft.key} ({path})" if path else draft.key


def _given_boxes(draft: Draft, frame: Frame) -> list[GivenBox]:
    given = [box for turn in draft.turns for region in turn.regions for box in region.boxes]
    names = draft.box_names or (draft.label or draft.key,) * len(given)
    return [GivenBox(name, box, draft.form, frame) for name, box in zip(names, given, strict=True)]


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


def _read_head(draft: Draft) -> Read:
    """Like `_read`, but reads only the first bytes if all that boxes need is in them.

    Without boxes the orientation does not matter, which some formats state at the end.
    """
    if isinstance(draft.image, tuple):
        head, path, _ = _load(draft.image, HEAD_BYTES)
        if head and not is_converted(head):
            try:
                header = parse_header(head)
            except Incomplete as error:
                header = None if draft.has_boxes else error.header
            except ImageFault:
                header = None
            if header is not None:
                return Read(head, path, EXTENSION_OF[header.kind], header)
    return _read(draft.image)


def _read(image: Where) -> Read:
    """An image with its header. A fault is one of a few reasons, which are counted."""
    if image is None:
        return Read()
    path = ""
    if isinstance(image, tuple):
        data, path, fault = _load(image)
    elif isinstance(image, TarMember):
        data, fault = _read_member(image), ""
    else:
        data, fault = image, ""
    if not fault:
        try:
            later_frames = has_more_frames(data)
            data = as_png(data, "")
            header = read_header(data, "")
            return Read(data, path, EXTENSION_OF[header.kind], header, later_frames=later_frames)
        except DataError as error:
            fault = str(error).removeprefix(": ")
    return Read(path=path, fault=fault)


def _load(paths: tuple[str, ...], count: int = -1) -> tuple[bytes, str, str]:
    """The bytes of the first file that exists, its path, and what is wrong with it."""
    for path in chain(paths, chain.from_iterable(map(_other_spellings, paths))):
        try:
            with open(path, "rb") as stream:
                return stream.read(count), path, ""
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            return b"", path, "a folder, not an image"
        except OSError as error:
            return b"", path, f"cannot be read: {os.strerror(error.errno) if error.errno else type(error).__name__}"
        except ValueError:
            return b"", "", "the path holds a NUL or half a character"
    return b"", "", IMAGE_MISSING


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


def _fit(turn: Turn, frame: Frame | None, counts: Counter[str]) -> Turn:
    """The turn with clean texts and with boxes inside the image. Raises `DataError` with one of a few reasons."""
    regions = tuple([_fit_region(region, frame, counts) for region in turn.regions])
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


def _fit_region(region: Region, frame: Frame | None, counts: Counter[str]) -> Region:
    if frame is None:
        raise DataError("a box without an image")
    phrases = tuple(filter(None, map(one_line, region.phrases)))
    if not phrases:
        raise DataError("empty phrase")
    return Region(tuple([_fit_box(box, frame, counts) for box in region.boxes]), phrases, region.span)


def _fit_box(box: Box, frame: Frame, counts: Counter[str]) -> Box:
    """The box in pixels of the image, cut at its border, which is counted in `counts`."""
    placed = frame.to_image(box)
    if not all(map(math.isfinite, (placed.x1, placed.y1, placed.x2, placed.y2))):
        raise DataError("box is not finite")
    if not placed.is_upright:
        raise DataError("empty or inverted box")
    width, height = float(frame.width), float(frame.height)
    cut = Box(max(0.0, placed.x1), max(0.0, placed.y1), min(width, placed.x2), min(height, placed.y2))
    if cut.x2 - cut.x1 < MIN_SIDE_PX or cut.y2 - cut.y1 < MIN_SIDE_PX:
        raise DataError("box thinner than a pixel" if cut.is_upright else "box outside the image")
    counts[BOXES] += 1
    if cut != placed:
        counts[CUT if overshoot(placed, frame) > TOLERANCE_PX else ROUNDED] += 1
    return cut
