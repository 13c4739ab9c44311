"""Indexes existing tars as a corpus: finds their samples, lists every fault, writes index, table and manifest.

Supports tars of records (ours, or made by any webdataset tool) and of captioned images (an image and a json or txt, as
img2dataset writes them). The tars are read once and never changed.
"""

from __future__ import annotations

import hashlib
import json
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
from minigptv2.record import Record, from_json
from minigptv2.shards import tar
from minigptv2.shards.dropped import DROPPED_FILE, Dropped
from minigptv2.shards.image_files import IMAGE_EXTENSIONS, image_size, open_image
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
from minigptv2.shards.reader import TEXT_EXTENSIONS, record_of_caption, split_name
from minigptv2.tasks import validate

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ScanOptions:
    """What the samples of a tar have to be. `decode` decodes every image completely."""

    corpus: str
    layout: str
    baked_side: int | None = None
    decode: bool = False


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


def scan_shard(file: Path, options: ScanOptions, *, name: str | None = None) -> ShardScan:
    """The samples and faults of one tar. `name` is the shard's name in the table, by default the file's name.

    A sample consists of adjacent members with one key: one json or txt and at most one image. Faults are missing,
    duplicate or non-adjacent members, members of another kind (never opened), invalid records and images, sizes that
    disagree, and a damaged or truncated archive, which is read up to the damage.
    """
    name = name or file.name
    data = _map(file)
    sha256 = hashlib.sha256(data).hexdigest()
    scan = _Scanner(data, name, options)
    scan.run()
    info = ShardInfo(name, len(data), sha256, len(scan.rows))
    rows, counts = np.array(scan.rows, dtype=INDEX_DTYPE), np.array(scan.turn_counts, dtype=np.int64)
    return ShardScan(info, rows, counts, scan.images, scan.turns, scan.faults)


def _map(file: Path) -> memoryview:
    with open(file, "rb") as stream:
        empty = stream.seek(0, 2) == 0  # an empty file cannot be mapped
        return memoryview(b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


class _Scanner:
    """Reads one tar, one group of members with the same key at a time."""

    def __init__(self, data: memoryview, shard: str, options: ScanOptions) -> None:
        self.data, self.shard, self.options = data, shard, options
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.turn_counts: list[int] = []
        self.images = 0
        self.turns: Counter[str] = Counter()
        self.faults: list[Dropped] = []
        self._seen: set[str] = set()

    def run(self) -> None:
        group: list[tuple[str, tar.Member]] = []
        key = None
        try:
            for member in tar.find_members(self.data):
                member_key, extension = split_name(member.name)
                if member_key != key:
                    self._close(key, group)
                    key, group = member_key, []
                group.append((extension, member))
        except tar.TarError as error:
            self._close(key, group)
            self._fault("", f"damaged archive: {error}; the rest is not read")
            return
        self._close(key, group)

    def _fault(self, key: str, reason: str) -> None:
        self.faults.append(Dropped(self.options.corpus, self.shard, key, reason))

    def _close(self, key: str | None, group: list[tuple[str, tar.Member]]) -> None:
        if key is None:
            return
        problem = self._problem(key, group)
        if problem:
            self._fault(key, problem)
        self._seen.add(key)

    def _problem(self, key: str, group: list[tuple[str, tar.Member]]) -> str | None:
        """Add the group as a sample, or return why it is not one."""
        if key in self._seen:
            return "duplicate key in this shard: its members are repeated or not adjacent"
        extensions = [extension for extension, _ in group]
        for extension, member in group:
            if extension not in (*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS):
                return f"member '{member.name}' is not an image, json or txt and was not opened"
            if extensions.count(extension) > 1:
                return f"duplicate member '{member.name}'"
        members = dict(group)
        image = [member for extension, member in group if extension in IMAGE_EXTENSIONS]
        text_kinds = TEXT_EXTENSIONS if self.options.layout == CAPTIONS else TEXT_EXTENSIONS[:1]
        kind = next((extension for extension in text_kinds if extension in members), None)
        if kind is None:
            return f"no {' or '.join(text_kinds)} for the image"
        if len(image) > 1:
            return "two images with one key"
        text = members[kind]
        try:
            self._add_row(kind, text, image[0] if image else None, [member for _, member in group])
        except DataError as error:
            return str(error).removeprefix(": ")
        return None

    def _add_row(self, kind: str, text: tar.Member, image: tar.Member | None, members: list[tar.Member]) -> None:
        start = members[0].offset
        text_block, text_blocks = (text.offset - start) // tar.BLOCK, (text.end - text.offset) // tar.BLOCK
        if members[-1].end - start > MAX_MEMBER_BYTES:
            raise DataError(f"its members have more than {MAX_MEMBER_BYTES} bytes")
        record = self._record(kind, text, image)
        rest = 0
        for member in members:
            if member is not text:
                rest = zlib.crc32(self.data[member.offset : member.end], rest)
        text_crc = zlib.crc32(self.data[text.offset : text.end])
        self.rows.append((start // tar.BLOCK, text_block, text_blocks, text_crc, rest))
        self.turn_counts.append(record.annotations)
        self.turns.update(record.tasks)
        self.images += image is not None

    def _record(self, kind: str, text: tar.Member, image: tar.Member | None) -> Record:
        pixels = bytes(self._bytes(image)) if image is not None else b""
        size = image_size(pixels, "") if image is not None else None
        data = bytes(self._bytes(text))
        if self.options.layout == CAPTIONS:
            if size is None:
                raise DataError("no image for the caption")
            record = record_of_caption(kind, data, lambda: size, "")
        else:
            record = from_json(data, "")
            validate(record, "")
        if record.has_image != (size is not None):
            raise DataError("record and image disagree on whether there is an image")
        side = self.options.baked_side
        stored = (side, side) if side else (record.width, record.height)
        if size is not None and size[1:] != stored:
            raise DataError(f"the image is {size[1]} x {size[2]} px, its record says {stored[0]} x {stored[1]}")
        if size is not None and self.options.decode:
            open_image(pixels, "")
        return record

    def _bytes(self, member: tar.Member) -> memoryview:
        return self.data[member.data_offset : member.data_offset + member.size]


def index_corpus(
    folder: Path,
    corpus: str,
    *,
    workers: int = 0,
    skip_faults: bool = False,
    license: str = "",
    progress: Callable[[int], object] | None = None,
) -> tuple[Manifest | None, list[Dropped]]:
    """Write index, table and manifest for the tars under `folder`. Returns the manifest and every fault.

    If there are faults nothing is written and the manifest is None, unless `skip_faults` is set. Then the faulty
    samples are left out and listed in `dropped.jsonl`. What only a build knows (split, size of baked images, dropped
    samples, license) is kept from the folder's manifest, if it has one. Raises `DataError` if there is no tar or no
    good sample.
    """
    files = sorted(folder.rglob("*.tar"))
    if not files:
        raise DataError(f"no .tar file in {folder}")
    layout = detect_layout(files)
    built = manifest_before(folder)
    options = ScanOptions(corpus, layout, baked_side=built.baked_side if built else None)
    shards: list[ShardInfo] = []
    faults: list[Dropped] = []
    turns: Counter[str] = Counter()
    images = 0
    with IndexWriter(folder) as index:
        for scan in map_in_order(partial(_scan_below, folder, options), files, workers):
            faults += scan.faults
            if len(scan.rows):
                shards.append(scan.info)
                index.append(scan.rows, scan.turn_counts)
                turns.update(scan.turns)
                images += scan.images
            if progress is not None:
                progress(1)
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
            layout=layout,
            baked_side=options.baked_side,
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
        try:
            for member in tar.find_members(data):
                if split_name(member.name)[1] == "json":
                    document = json.loads(bytes(data[member.data_offset : member.data_offset + member.size]))
                    return RECORDS if isinstance(document, dict) and "turns" in document else CAPTIONS
        except (ValueError, RecursionError):  # a damaged tar or json: try the next one
            continue
    return CAPTIONS


def map_in_order(function: Callable[[Item], Result], items: list[Item], workers: int) -> Iterable[Result]:
    """`map` in `workers` processes (0: in this one). Results come in the order of the items."""
    if workers == 0:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items)
