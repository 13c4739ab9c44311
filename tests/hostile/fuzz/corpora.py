"""Changed corpora: tars, records in them, and manifests, shard tables, indexes and turn counts with right hashes."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from minigptv2.corpora.sources import toy
from minigptv2.errors import DataError
from minigptv2.record import Record, Turn
from minigptv2.shards import tar
from minigptv2.shards.indexing import ScanOptions, scan_shard
from minigptv2.shards.manifest import CAPTIONS, INDEX_FILE, MANIFEST_FILE, RECORDS, TABLE_FILE
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.turn_counts import TURNS_FILE
from minigptv2.shards.verify import verify_corpus
from minigptv2.shards.writer import Sample, write_corpus
from tests.hostile.corpora import signed
from tests.hostile.fuzz.mutations import LENGTHS, changed_json, damaged

SAMPLES = 4
_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
"""Start and length of the fields of a header."""
_NAMES = (b"../x", b"/x", b"a\\b", b"\xff.json", b"\x1b[2J", b"", b"a" * 200)
_COLUMNS = ("<u1", "<i8", "<f8", "<c16", "|S5", "<U5", "<M8[s]", ">u8", "|V3", "|b1")
_KINDS = b"0\x001234567gxLKSVDMN"


def _corpus(folder: Path, *, separate_turns: bool = False) -> Path:
    samples = list(toy.samples("refer", SAMPLES, Path(), "val"))
    if separate_turns:
        turns = tuple(Turn("language", f"ask {number}", ("yes",)) for number in range(3))
        samples = [Sample(f"{number}", Record(turns, separate=True)) for number in range(SAMPLES)]
    write_corpus(samples, folder, "toy_refer", samples_per_shard=2)
    return folder


class Tar:
    """A tar to index: its headers with right checksums, its members, and its bytes."""

    def __init__(self, folder: Path) -> None:
        self._whole = sorted(_corpus(folder / "corpus").glob("*.tar"))[0].read_bytes()
        self._members = list(tar.find_members(self._whole))
        self._file = folder / "a.tar"

    def unchanged(self) -> bytes:
        return self._whole

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        kind = rng.random()
        if kind < 0.3:
            return damaged(self._whole, rng)
        if kind < 0.5:
            return self._with_other_record(rng)
        name, changed = "", bytearray(self._whole)
        while not name or rng.random() < 0.4:
            name = rng.choice(list(_FIELDS))
            _change_header(changed, rng.choice(self._members).offset, name, rng)
        return f"header: {name}", bytes(changed)

    def _with_other_record(self, rng: random.Random) -> tuple[str, bytes]:
        """A changed record in a tar that is right otherwise."""
        parts, name = [], ""
        chosen = rng.choice([member.name for member in self._members if member.name.endswith(".json")])
        for member in self._members:
            data = self._whole[member.data_offset : member.data_offset + member.size]
            if member.name == chosen:
                name, data = changed_json(json.loads(data), rng)
            parts.append(tar.header_of(member.name, len(data)) + data + bytes(-len(data) % tar.BLOCK))
        return f"record: {name}", b"".join(parts) + tar.END_OF_ARCHIVE

    def read(self, data: bytes) -> bool:
        self._file.write_bytes(data)
        scans = [scan_shard(self._file, ScanOptions("x", layout, decode=True)) for layout in (RECORDS, CAPTIONS)]
        for scan in scans:
            assert not any("\n" in str(fault) for fault in scan.faults), scan.faults
        return not scans[0].faults


def _change_header(data: bytearray, at: int, name: str, rng: random.Random) -> None:
    """Another value in a field of a header, and the checksum that belongs to it."""
    start, length = (at + _FIELDS[name][0], _FIELDS[name][1])
    if name == "kind":
        value = bytes([rng.choice(_KINDS)])
    elif name == "size":
        value = rng.choice(
            [b"%011o\0" % (rng.choice(LENGTHS) % 8**11), b"\x80" + rng.randbytes(11), b"\xff" * 12, b"-1\0", b"\0"]
        )
    else:
        value = rng.choice([rng.randbytes(length), *_NAMES])
    data[start : start + length] = value[:length].ljust(length, b"\0")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + tar.BLOCK])


class _CorpusFile:
    """A file beside the tars, which the manifest has the right hash of: an attacker computes it too."""

    name: str
    separate_turns = False

    def __init__(self, folder: Path) -> None:
        self._folder = _corpus(folder / "corpus", separate_turns=self.separate_turns)
        self._manifest: dict[str, Any] = json.loads((self._folder / MANIFEST_FILE).read_text())
        self._valid = (self._folder / self.name).read_bytes()

    def unchanged(self) -> bytes:
        return self._valid

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        return damaged(self._valid, rng) if rng.random() < 0.3 else changed_array(self._valid, rng)

    def read(self, data: bytes) -> bool:
        (self._folder / self.name).write_bytes(data)
        self._sign(data)
        faults = verify_corpus(self._folder)
        assert not any("\n" in str(fault) for fault in faults), faults
        reader = CorpusReader(self._folder)
        for sample in range(min(len(reader), 10 * SAMPLES)):
            try:
                if reader.record(sample).has_image:
                    reader.image(sample)
            except DataError as error:
                reader.dropped(sample, error)
        return not faults

    def _sign(self, data: bytes) -> None:
        keys = {TABLE_FILE: "shards_sha256", INDEX_FILE: "index_sha256", TURNS_FILE: "turn_counts_sha256"}
        document = self._manifest | {keys[self.name]: hashlib.sha256(data).hexdigest()}
        (self._folder / MANIFEST_FILE).write_text(signed(document))


class Table(_CorpusFile):
    """The table of shards."""

    name = TABLE_FILE


class Index(_CorpusFile):
    """The index of samples."""

    name = INDEX_FILE


class TurnCounts(_CorpusFile):
    """The number of turns of each sample."""

    name, separate_turns = TURNS_FILE, True


class ManifestFile(_CorpusFile):
    """The manifest, with the hash of its own content in most cases."""

    name = MANIFEST_FILE

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        name, data = changed_json({key: self._manifest[key] for key in self._manifest if key != "sha256"}, rng)
        if rng.random() < 0.8:
            try:
                return f"signed: {name}", signed(json.loads(data)).encode()
            except (ValueError, AttributeError, RecursionError):
                return name, data
        return name, data

    def _sign(self, data: bytes) -> None:
        """The manifest is signed when it is drawn."""


def changed_array(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The name of a change, and the array of an `.npy` file with it: in its numbers, its columns or its header."""
    rows = np.load(io.BytesIO(data))
    name = rng.choice(["a number", "a column", "rows", "header"])
    if name == "header":
        length = int.from_bytes(data[8:10], "little")
        changed, header = damaged(data[10 : 10 + length], rng)
        header = header[: 2**16 - 1]
        return f"header: {changed}", data[:8] + len(header).to_bytes(2, "little") + header + data[10 + length :]
    if name == "rows":
        rows = np.resize(rows, rng.choice([0, 1, len(rows) + 1, 1000]))
    elif rows.dtype.names is None or name == "a number":
        rows = _with_other_number(rows, rng)
    else:
        kinds = [(key, rows.dtype[key].str) for key in rows.dtype.names]
        at = rng.randrange(len(kinds))
        kinds[at] = (
            kinds[at][0],
            rng.choice(_COLUMNS),
        )
        rows = np.zeros(len(rows), kinds)
    stream = io.BytesIO()
    np.save(stream, rows)
    return name, stream.getvalue()


def _with_other_number(rows: np.ndarray, rng: random.Random) -> np.ndarray:
    """Extreme numbers or random bytes in one of the rows."""
    raw, at = bytearray(rows.tobytes()), rng.randrange(len(rows)) * rows.dtype.itemsize
    place = at + rng.randrange(rows.dtype.itemsize)
    size = rng.choice([1, 2, 4, 8])
    raw[place : place + size] = (rng.choice(LENGTHS) % (1 << 8 * size)).to_bytes(size, "little")
    return np.frombuffer(bytes(raw[: rows.nbytes]), rows.dtype)
