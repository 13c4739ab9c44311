"""Indexes existing tars as a corpus: finds their samples, lists every fault, writes index, table and manifest.

Supports tars of records (ours, or made by any webdataset tool) and of captioned images (an image and a json or txt, as
img2dataset writes them). The tars are read once and never changed. Files and members that are not used are named.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from minigptv2.errors import DataError
from minigptv2.files import write_atomically
from minigptv2.foreign_files import open_data
from minigptv2.record import Record, from_json
from minigptv2.shards import tar
from minigptv2.shards.dropped import DROPPED_FILE, Dropped
from minigptv2.shards.image_files import check_image, check_size, read_header
from minigptv2.shards.image_frames import has_more_frames
from minigptv2.shards.image_header import MAX_PIXELS, ImageHeader
from minigptv2.shards.manifest import (
    CAPTIONS,
    INDEX_DTYPE,
    MAX_MEMBER_BYTES,
    RECORDS,
    IndexWriter,
    Manifest,
    ShardInfo,
    parse_manifest,
    save_manifest,
)
from minigptv2.shards.passed_over import PassedOver
from minigptv2.shards.reader import record_of_caption
from minigptv2.shards.tar import printable
from minigptv2.shards.tar_captions import TEXT_EXTENSIONS, caption_of, facts_of, is_other_text
from minigptv2.shards.tar_files import find_tars
from minigptv2.shards.tar_samples import IMAGE, Group, read_groups
from minigptv2.tasks import validate

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ScanOptions:
    """What the samples of a tar have to be. `decode` decodes every image completely.

    `ignore_extra` passes over members that are neither an image nor a text. They are faults otherwise.
    """

    corpus: str
    layout: str
    baked_side: int | None = None
    decode: bool = False
    max_pixels: int = MAX_PIXELS
    ignore_extra: bool = False


@dataclass
class ShardScan:
    """The content of one tar: index rows (`INDEX_DTYPE`) of the good samples, and a fault for everything else.

    `turn_counts` int64 [samples]: number of separate turns of each good sample.
    """

    info: ShardInfo
    rows: np.ndarray
    turn_counts: np.ndarray
    images: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    faults: list[Dropped] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    with_extras: list[str] = field(default_factory=list)
    """Keys of samples that also have extra members, which only `ignore_extra` accepts."""


def scan_shard(file: Path, options: ScanOptions, *, name: str | None = None) -> ShardScan:
    """The samples and faults of one tar. `name` is the shard's name in the table, by default the file's name.

    A sample consists of adjacent members with one key: at most one image, json and txt. Faults are missing, duplicate
    or non-adjacent members, members of another kind (never opened), links and unusable names, invalid records and
    images, sizes that disagree, and a damaged or truncated archive, which is read up to the damage.
    """
    name = name or file.name
    data = _map(file)
    sha256 = hashlib.sha256(data).hexdigest()
    scan = _Scanner(data, name, options)
    scan.run()
    info = ShardInfo(name, len(data), sha256, len(scan.rows))
    rows, counts = np.array(scan.rows, dtype=INDEX_DTYPE), np.array(scan.turn_counts, dtype=np.int64)
    with_extras = [group.key for group in scan.content.groups if group.extras]
    return ShardScan(info, rows, counts, scan.images, scan.turns, scan.faults, scan.passed_over, with_extras)


def unused_members(file: Path, name: str) -> PassedOver:
    """What a tar holds besides images, jsons and txts, from its headers alone."""
    found = PassedOver()
    found.add_members(name, read_groups(_map(file)))
    return found


def _map(file: Path) -> memoryview:
    with open(open_data(file), "rb") as stream:
        empty = stream.seek(0, 2) == 0  # an empty file cannot be mapped
        return memoryview(b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


class _Scanner:
    """Reads one tar, one group of members with the same key at a time."""

    def __init__(self, data: memoryview, shard: str, options: ScanOptions) -> None:
        self.data, self.shard, self.options = data, shard, options
        self.content = read_groups(data)
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.turn_counts: list[int] = []
        self.images = 0
        self.turns: Counter[str] = Counter()
        self.faults: list[Dropped] = []
        self.passed_over = PassedOver()
        self.passed_over.add_members(shard, self.content, extras=options.ignore_extra)

    def run(self) -> None:
        for group in self.content.groups:
            if group.is_extra and self.options.ignore_extra:
                continue
            try:
                self._add(group)
            except DataError as error:
                self._fault(group.key, str(error).removeprefix(": "))
        if self.content.damage:
            self._fault("", self.content.damage)

    def _fault(self, key: str, reason: str) -> None:
        self.faults.append(Dropped(self.options.corpus, self.shard, key, reason))

    def _add(self, group: Group) -> None:
        """Add the group as a sample. Raises `DataError` saying why it is not one."""
        if group.problem:
            raise DataError(group.problem)
        if group.extras and not self.options.ignore_extra:
            raise DataError(group.extra_problem)
        if not group.is_adjacent:
            raise DataError(
                "its members are not adjacent, as reading in place requires; `minigptv2 shards build` copies"
            )
        image, kind = group.members.get(IMAGE), self._text_kind(group)
        text = group.members[kind]
        members = sorted(group.members.values(), key=lambda member: member.offset)
        start = members[0].offset
        text_block, text_blocks = (text.offset - start) // tar.BLOCK, (text.end - text.offset) // tar.BLOCK
        if members[-1].end - start > MAX_MEMBER_BYTES:
            raise DataError(f"its members have more than {MAX_MEMBER_BYTES} bytes")
        record, later_frames = self._record(kind, text, image)
        rest = 0
        for member in members:
            if member is not text:
                rest = zlib.crc32(self.data[member.offset : member.end], rest)
        text_crc = zlib.crc32(self.data[text.offset : text.end])
        self.rows.append((start // tar.BLOCK, text_block, text_blocks, text_crc, rest))
        self.turn_counts.append(record.annotations)
        self.turns.update(record.tasks)
        self.images += image is not None
        if later_frames:
            self.passed_over.later_frames.add([f"{self.shard} / {printable(group.members[IMAGE].name)}"])
        if kind == "json" and (other := group.members.get("txt")) is not None:
            self._add_other_text(other, record)

    def _add_other_text(self, text: tar.Member, record: Record) -> None:
        """Name the txt beside a record, or beside a json with another caption: nobody reads it."""
        if self.options.layout == RECORDS or is_other_text(bytes(self._bytes(text)), record.turns[0].answers[0]):
            self.passed_over.other_texts.add([f"{self.shard} / {printable(text.name)}"])

    def _text_kind(self, group: Group) -> str:
        """The extension of the member that holds the record or the caption."""
        kinds = TEXT_EXTENSIONS if self.options.layout == CAPTIONS else TEXT_EXTENSIONS[:1]
        found = [kind for kind in kinds if kind in group.members]
        if not found:
            raise DataError(f"no {' or '.join(kinds)} for the image")
        if len(found) > 1 and not caption_of(facts_of(bytes(self._bytes(group.members[found[0]])))).strip():
            return found[1]
        return found[0]

    def _record(self, kind: str, text: tar.Member, image: tar.Member | None) -> tuple[Record, bool]:
        """The record, and whether its image has several frames."""
        pixels = bytes(self._bytes(image)) if image is not None else b""
        header = read_header(pixels, "") if image is not None else None
        data = bytes(self._bytes(text))
        if self.options.layout == CAPTIONS:
            if header is None:
                raise DataError("no image for the caption")
            size = header.kind, header.width, header.height
            record = record_of_caption(kind, data, lambda: size, "")
        else:
            record = from_json(data, "")
            validate(record, "")
        if record.has_image != (header is not None):
            raise DataError("record and image disagree on whether there is an image")
        side = self.options.baked_side
        stored = (side, side) if side else (record.width, record.height)
        if header is not None:
            _require_size(header, stored, self.options)
            check_size(header, self.options.max_pixels)
            if self.options.decode:
                check_image(pixels, "", max_pixels=self.options.max_pixels)
        return record, has_more_frames(pixels)

    def _bytes(self, member: tar.Member) -> memoryview:
        return self.data[member.data_offset : member.data_offset + member.size]


def _require_size(header: ImageHeader, stated: tuple[int | None, int | None], options: ScanOptions) -> None:
    """Raise `DataError` unless a record states the upright size, or, without boxes, the size before the rotation."""
    upright, stored = (header.width, header.height), (header.stored_width, header.stored_height)
    if stated == upright or stated == stored and options.layout == CAPTIONS:
        return
    reason = f"the image is {upright[0]} x {upright[1]} px, its record says {stated[0]} x {stated[1]}"
    if stated == stored:
        reason += ", its size before the EXIF rotation, which images are now read with; build the corpus again"
    raise DataError(reason)


def index_corpus(
    folder: Path,
    corpus: str,
    *,
    workers: int = 0,
    skip_faults: bool = False,
    ignore_extra: bool = False,
    license: str = "",
    progress: Callable[[int], object] | None = None,
    note: Callable[[str], object] = str,
) -> tuple[Manifest | None, list[Dropped]]:
    """Write index, table and manifest for the tars under `folder`. Returns the manifest and every fault.

    Every image is decoded by the rule of training.
    If there are faults nothing is written and the manifest is None, unless `skip_faults` is set. Then the faulty
    samples and files are left out and listed in `dropped.jsonl`. `note` receives one line for each kind of file or
    member that is passed over. What only a build knows (split, size of baked images, dropped samples, license) is kept
    from the folder's manifest, if it has one. Raises `DataError` if there is no tar or no good sample.
    """
    found = find_tars(folder)
    files = found.tars
    faults = [Dropped(corpus, file, "", reason) for file, reason in found.unreadable.items()]
    if not files:
        raise DataError("\n".join([f"no .tar file in {folder}", *(f"  {fault}" for fault in faults)]))
    built = manifest_before(folder)
    baked_side = built.baked_side if built else None
    max_pixels = built.max_pixels if built else MAX_PIXELS
    options = ScanOptions(corpus, detect_layout(files), baked_side, True, max_pixels, ignore_extra=ignore_extra)
    shards: list[ShardInfo] = []
    turns: Counter[str] = Counter()
    passed_over = PassedOver()
    images = 0
    with IndexWriter(folder) as index:
        for scan in map_in_order(partial(_scan_below, folder, options), files, workers):
            faults += scan.faults
            passed_over.merge(scan.passed_over)
            if len(scan.rows):
                shards.append(scan.info)
                index.append(scan.rows, scan.turn_counts)
                turns.update(scan.turns)
                images += scan.images
            if progress is not None:
                progress(1)
        for line in (*passed_over.lines(), *found.describe_unused()):
            note(line)
        if faults and not skip_faults:
            return None, faults
        if not shards:
            raise DataError(
                f"{folder}: no good sample in {len(files)} tars; first fault: {faults[0] if faults else '-'}"
            )
        if faults:
            lines = "".join(f"{fault.to_json()}\n" for fault in faults)
            write_atomically(folder / DROPPED_FILE, lines.encode())
        manifest = save_manifest(
            folder,
            shards,
            index,
            corpus=corpus,
            images=images,
            turns=dict(turns),
            layout=options.layout,
            baked_side=options.baked_side,
            max_pixels=options.max_pixels,
            counts=built.counts if built else {},
            dropped=len(faults) or (built.dropped if built else 0),
            license=license or (built.license if built else ""),
            split=built.split if built else "",
        )
    return manifest, faults


def manifest_before(folder: Path) -> Manifest | None:
    """The manifest of a folder that was built or indexed before. None if there is none or it cannot be read."""
    try:
        return parse_manifest(folder)
    except DataError:
        return None


def _scan_below(folder: Path, options: ScanOptions, file: Path) -> ShardScan:
    return scan_shard(file, options, name=str(file.relative_to(folder)))


def detect_layout(files: Iterable[Path]) -> str:
    """`records` if the first json has turns, else `captions`."""
    for file in files:
        data = _map(file)
        for group in read_groups(data).groups:
            member = group.members.get("json")
            if member is None or group.problem:
                continue
            try:
                facts = facts_of(bytes(data[member.data_offset : member.data_offset + member.size]))
            except DataError:  # a damaged json: try the next one
                continue
            return RECORDS if "turns" in facts else CAPTIONS
    return CAPTIONS


def map_in_order(function: Callable[[Item], Result], items: list[Item], workers: int) -> Iterable[Result]:
    """`map` in `workers` processes (0: in this one). Results come in the order of the items."""
    if workers == 0:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items)
