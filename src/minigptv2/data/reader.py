"""Random access to the samples of one corpus: number in, record or image out.

Members are read as raw bytes and interpreted by our own short allow-list; nothing is unpickled or executed. Every
`DataError` names corpus, shard and sample.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from minigptv2.data.shards import IMAGE_EXTENSIONS, INDEX_DTYPE, INDEX_FILE, Manifest, load_manifest
from minigptv2.errors import DataError
from minigptv2.files import sha256_of
from minigptv2.record import Record, from_json

_MAX_OPEN_SHARDS = 64


class CorpusReader:
    """Reads samples 0 .. len - 1 of a corpus folder, in the order of its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = load_manifest(folder)
        self._index = np.load(folder / INDEX_FILE, mmap_mode="r")
        if self._index.dtype != INDEX_DTYPE or len(self._index) != self.manifest.samples:
            raise DataError(f"{folder / INDEX_FILE}: {len(self._index)} entries, manifest says {self.manifest.samples}")
        if sha256_of(folder / INDEX_FILE) != self.manifest.index_sha256:
            raise DataError(f"{folder / INDEX_FILE}: not the index that its manifest was written with")
        self.shard_starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self.manifest.shards])])
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.samples

    def where(self, sample: int) -> str:
        """Provenance of a sample, for messages: corpus, shard and number."""
        shard = self._shard_of(sample)
        return f"{self.manifest.shards[shard].file} / sample {sample - self.shard_starts[shard]}"

    def record(self, sample: int) -> Record:
        """The validated record. Raises `DataError` if it is not one."""
        entry = self._index[sample]
        data = self._pread(sample, int(entry["offset"]) + int(entry["record_offset"]), int(entry["record_bytes"]))
        return from_json(data, self.where(sample))

    def image(self, sample: int) -> bytes:
        """The image file's bytes, undecoded. Raises `DataError` if the sample's members are not what was indexed."""
        shard = self._shard_of(sample)
        start = int(self._index[sample]["offset"])
        last = sample + 1 == self.shard_starts[shard + 1]
        end = self.manifest.shards[shard].bytes if last else int(self._index[sample + 1]["offset"])
        span = self._pread(sample, start, end - start)
        record_key = None
        found: tuple[str, bytes] | None = None
        try:
            with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as members:
                for member in members:
                    key, _, extension = member.name.partition(".")
                    stream = members.extractfile(member)
                    if extension in IMAGE_EXTENSIONS and stream is not None:
                        found = (key, stream.read())
                    else:
                        record_key = key
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise DataError(f"{self.where(sample)}: damaged tar member: {error}") from error
        if found is None or found[0] != record_key:
            raise DataError(f"{self.where(sample)}: no image beside record '{record_key}'")
        return found[1]

    def _shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self.shard_starts, sample, side="right")) - 1

    def _pread(self, sample: int, offset: int, count: int) -> bytes:
        shard = self._shard_of(sample)
        try:
            data = os.pread(self._open(shard), count, offset)
        except OSError as error:
            raise DataError(f"{self.folder / self.manifest.shards[shard].file}: cannot be read: {error}") from error
        if len(data) < count:
            raise DataError(f"{self.where(sample)}: the shard ends {count - len(data)} bytes early")
        return data

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        info = self.manifest.shards[shard]
        descriptor = os.open(self.folder / info.file, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        if size != info.bytes:
            os.close(descriptor)
            raise DataError(f"{self.folder / info.file}: {size} bytes, the manifest says {info.bytes}; rebuild it")
        self._files[shard] = descriptor
        if len(self._files) > _MAX_OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        return descriptor
