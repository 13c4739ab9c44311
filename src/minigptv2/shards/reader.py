"""Reads samples of one corpus by number: records and images, or the caption records of img2dataset's tars.

Members are read as raw bytes, checked against the checksums of the index, and decoded by a short allow-list. Nothing is
unpickled, executed or extracted. The result is what was written, or a `DataError` that names corpus, shard and key.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from minigptv2.errors import DataError
from minigptv2.record import Record, Turn, from_json
from minigptv2.shards import tar
from minigptv2.shards.dropped import Dropped
from minigptv2.shards.image_files import IMAGE_EXTENSIONS, image_size, open_image
from minigptv2.shards.local_files import LocalFiles, ScatteredFiles
from minigptv2.shards.manifest import CAPTIONS, MAX_MEMBER_BYTES, Manifest, load_manifest, open_index
from minigptv2.shards.remote import RemoteFiles, is_remote, mirror, public_url
from minigptv2.shards.tar_captions import CAPTION_KEYS, TEXT_EXTENSIONS, caption_of, facts_of
from minigptv2.shards.tar_samples import is_of_macos, split_name
from minigptv2.shards.turn_counts import TurnCounts, open_turn_counts
from minigptv2.tasks import validate

_KEPT_KEYS = ("url", "key", "sha256")
"""Keys of img2dataset's json that are kept as provenance."""


class CorpusReader:
    """Reads samples 0 .. len - 1 of a corpus, in the order of its manifest.

    `folder` is a path or an `https://` or `s3://` URL. For a remote corpus, manifest, table and index are copied to a
    local cache, and samples are read in byte ranges. `check_shards=False` does not check that shards exist.
    """

    def __init__(self, folder: Path | str, *, check_shards: bool = True) -> None:
        self.folder = folder
        remote = is_remote(folder)
        local = mirror(str(folder)) if remote else Path(folder)
        self.manifest: Manifest = load_manifest(local, check_shards=check_shards and not remote)
        self._index = open_index(local, self.manifest)
        self._turn_counts = self._open_turn_counts(local)
        self._files = RemoteFiles(str(folder)) if remote else LocalFiles(folder)

    def __reduce__(self) -> tuple[type[CorpusReader], tuple[Path | str]]:
        return CorpusReader, (self.folder,)  # a worker opens the files itself: maps and descriptors are not pickled

    def scattered(self) -> CorpusReader:
        """The same corpus, for a few reads from many shards by several threads. See `ScatteredFiles`."""
        other = CorpusReader.__new__(CorpusReader)  # shares the manifest and the index, which are only read
        vars(other).update(vars(self))
        if isinstance(self._files, LocalFiles):
            other._files = ScatteredFiles(self._files.folder)
        return other

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def shard_starts(self) -> np.ndarray:
        """int64 [shards + 1]: number of each shard's first sample, then the total."""
        return self.manifest.shards.starts

    @property
    def counts_turns(self) -> bool:
        """Whether it is known how many separate turns each sample has. Version 0.1 did not count them."""
        return self.manifest.turn_counts_sha256 is not None or sum(self.manifest.turns.values()) == len(self)

    @property
    def turn_counts(self) -> TurnCounts | None:
        """The number of separate turns of each sample. None: every sample has one. Raises `DataError` if unknown."""
        if not self.counts_turns:
            raise DataError(f"{public_url(str(self.folder))}: how many separate turns each sample has is not known")
        return self._turn_counts

    def key(self, sample: int) -> str:
        """The sample's key in its shard, or `#n` for the n-th sample of a shard if it cannot be read."""
        shard = self._shard_of(sample)
        try:
            name, _ = self._text(sample)
        except DataError:
            return f"#{sample - self.shard_starts[shard]}"
        return split_name(name)[0]

    def shard_file(self, sample: int) -> str:
        """File name, below the corpus folder, of the shard that holds the sample."""
        return self.manifest.shards[self._shard_of(sample)].file

    def where(self, sample: int) -> str:
        """Location of a sample, for messages: shard, number in the shard, key."""
        shard = self._shard_of(sample)
        place = f"{self.manifest.shards[shard].file} / sample {sample - self.shard_starts[shard]}"
        key = self.key(sample)
        return place if key.startswith("#") else f"{place} ({key})"

    def dropped(self, sample: int, error: DataError) -> Dropped:
        """A dropped sample, with the reason that one of the methods below, or a later step, raised."""
        reason = str(error).removeprefix(f"{self.where(sample)}: ")
        return Dropped(self.manifest.corpus, self.shard_file(sample), self.key(sample), reason)

    def index_of(self, shard: int) -> np.ndarray:
        """The rows of the index (`INDEX_DTYPE`) for the samples of a shard."""
        return self._index[int(self.shard_starts[shard]) : int(self.shard_starts[shard + 1])]

    def record(self, sample: int) -> Record:
        """The validated record. Raises `DataError` if it is not the one that was written, or is invalid."""
        name, data = self._text(sample)
        where = self.where(sample) if self.manifest.layout == CAPTIONS else ""
        if self.manifest.layout == CAPTIONS:
            return record_of_caption(split_name(name)[1], data, lambda: image_size(self.image(sample), where), where)
        try:
            record = from_json(data, "")
            validate(record, "")
        except DataError as error:  # the location costs reads, so it is only computed on errors
            raise DataError(f"{self.where(sample)}{error}") from error
        return record

    def image(self, sample: int) -> bytes:
        """The bytes of the image file, not decoded. Raises `DataError` if they are not those that were written."""
        start, text_at, text_bytes, text_crc, rest_crc = self._entry(sample)
        shard = self._shard_of(sample)
        last = sample + 1 == self.shard_starts[shard + 1]
        end = self.manifest.shards[shard].bytes if last else self._entry(sample + 1)[0]
        span = self._read(sample, start, min(end - start, 2 * MAX_MEMBER_BYTES))
        image, key, checksum = None, None, 0
        if zlib.crc32(memoryview(span)[text_at : text_at + text_bytes]) != text_crc:
            self._fail(sample, "the record's checksum is wrong: its bytes changed since they were indexed", named=False)
        try:
            for member in tar.scan_members(span, whole=False):
                if is_of_macos(member.name):
                    continue
                member_key, extension = split_name(member.name)
                if key not in (None, member_key):
                    break
                key = member_key
                if member.offset == text_at or extension not in (*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS):
                    continue
                checksum = zlib.crc32(memoryview(span)[member.offset : member.end], checksum)
                if extension in IMAGE_EXTENSIONS:
                    image = span[member.data_offset : member.data_offset + member.size]
                if image is not None and checksum == rest_crc:
                    return image
        except tar.TarError as error:
            self._fail(sample, f"damaged shard: {error}")
        if image is None:
            self._fail(sample, "has no image")
        self._fail(sample, "the image's checksum is wrong: its bytes changed since they were indexed")

    def open_image(self, sample: int) -> Image.Image:
        """The decoded upright image, in the size in which it is stored. Raises `DataError` if it is damaged."""
        data = self.image(sample)
        try:
            return open_image(data, "", max_pixels=self.manifest.max_pixels)
        except DataError as error:
            raise DataError(f"{self.where(sample)}{error}") from error

    def _open_turn_counts(self, local: Path) -> TurnCounts | None:
        sha256, starts = self.manifest.turn_counts_sha256, self.manifest.shards.turn_starts
        return open_turn_counts(local, sha256, self.shard_starts, starts) if sha256 and starts is not None else None

    def _text(self, sample: int) -> tuple[str, bytes]:
        """Name and data of the member that holds the sample's record or caption."""
        start, text_at, text_bytes, text_crc, _ = self._entry(sample)
        data = self._read(sample, start + text_at, text_bytes)
        if zlib.crc32(data) != text_crc:
            self._fail(sample, "the record's checksum is wrong: its bytes changed since they were indexed", named=False)
        try:
            member = next(tar.find_members(data, whole=False))
        except (tar.TarError, StopIteration) as error:
            self._fail(sample, f"damaged shard: {error}", named=False)
        return member.name, data[member.data_offset : member.data_offset + member.size]

    def _entry(self, sample: int) -> tuple[int, int, int, int, int]:
        """Byte offset of the sample in its shard, offset from there and size of its text, and the two checksums."""
        block, text_block, text_blocks, text_crc, rest_crc = self._index[sample].item()
        return block * tar.BLOCK, text_block * tar.BLOCK, text_blocks * tar.BLOCK, text_crc, rest_crc

    def _shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self.shard_starts, sample, side="right")) - 1

    def _read(self, sample: int, offset: int, count: int) -> bytes:
        info = self.manifest.shards[self._shard_of(sample)]
        return self._files.read(info.file, info.bytes, offset, count)

    def _fail(self, sample: int, reason: str, *, named: bool = True) -> NoReturn:
        shard = self._shard_of(sample)
        place = f"{self.manifest.shards[shard].file} / sample {sample - self.shard_starts[shard]}"
        raise DataError(f"{self.where(sample) if named else place}: {reason}")


def record_of_caption(extension: str, data: bytes, size: Callable[[], tuple[str, int, int]], where: str) -> Record:
    """The caption record of one sample, from its json or its txt.

    `size` returns format, width and height of the image. It is only called if the text does not contain the size.
    Raises `DataError`, prefixed by `where`, for a sample without a caption.
    """
    try:
        facts = {} if extension == "txt" else facts_of(data)
        caption = caption_of(facts, data if extension == "txt" else None).strip()
        if not caption:
            raise DataError(f"no caption ({' or '.join(CAPTION_KEYS)}) in its {extension}")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    width, height = facts.get("width"), facts.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        _, width, height = size()
    source = {key: str(facts[key]) for key in _KEPT_KEYS if facts.get(key)}
    record = Record((Turn("caption", answers=(caption,)),), width, height, source)
    validate(record, where)
    return record
