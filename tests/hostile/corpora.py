"""Hostile corpora: manifests, shard tables, indexes, tars and the names in them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigptv2.errors import ExitCode
from tests.hostile.models import deep
from tests.hostile.payload import Payload, Trap, words

DATA = (ExitCode.DATA,)
CORPUS = "world/shards/train/toy_refer"
Make = Callable[[Path], list[str]]


def command(folder: Path, action: str = "verify") -> list[str]:
    return words("shards", action, folder / CORPUS, *(["--workers", 0] if action == "verify" else []))


def signed(document: dict[str, Any]) -> str:
    """A manifest with the hash of its content, as a hostile writer would make it."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest})


def manifest(action: str = "verify", **changes: Any) -> Make:
    def make(folder: Path) -> list[str]:
        file = folder / CORPUS / "manifest.json"
        file.write_text(signed(json.loads(file.read_text()) | changes))
        return command(folder, action)

    return make


def manifest_text(text: str | bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / CORPUS / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return command(folder)

    return make


def array(name: str, data: Callable[[Path], bytes]) -> Make:
    """Another file of the arrays, with the hash that the manifest has to state."""

    def make(folder: Path) -> list[str]:
        file = folder / CORPUS / name
        file.write_bytes(data(file))
        key = "shards_sha256" if name == "shards.npy" else "index_sha256"
        return manifest(**{key: hashlib.sha256(file.read_bytes()).hexdigest()})(folder)

    return make


def npy(value: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, **options)
    return buffer.getvalue()


def header(text: str) -> Callable[[Path], bytes]:
    return lambda _: b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text.encode() + bytes(64)


def shard_named(name: bytes) -> Make:
    """A table whose first shard has another name. It is as long as the column allows."""

    def changed(file: Path) -> bytes:
        rows = np.load(file)
        wide = np.zeros(
            len(rows),
            [(key, f"S{max(len(name), 80)}" if key == "file" else rows.dtype[key]) for key in rows.dtype.names],
        )
        for key in rows.dtype.names:
            wide[key] = rows[key]
        wide["file"][0] = name
        return npy(wide)

    return array("shards.npy", changed)


def retyped(key: str, kind: str) -> Callable[[Path], bytes]:
    def changed(file: Path) -> bytes:
        rows = np.load(file)
        return npy(
            np.zeros(len(rows), [(name, kind if name == key else rows.dtype[name]) for name in rows.dtype.names])
        )

    return changed


def filled(key: str, number: int) -> Callable[[Path], bytes]:
    def changed(file: Path) -> bytes:
        rows = np.load(file)
        rows[key] = number
        return npy(rows)

    return changed


def tar_of(*members: tuple[str, bytes, bytes]) -> Make:
    """A tar to index: name, kind and content of its members, followed by good ones."""

    def make(folder: Path) -> list[str]:
        place = folder / "theirs"
        place.mkdir()
        with tarfile.open(folder / "photographs.tar") as good, tarfile.open(place / "a.tar", "w") as archive:
            for name, kind, content in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, "/etc/passwd", len(content)
                archive.addfile(info, io.BytesIO(content))
            for member in good.getmembers()[:4]:
                archive.addfile(member, good.extractfile(member))
        return words("shards", "index", place, "--workers", 0)

    return make


def raw_tar(change: Callable[[bytearray], None]) -> Make:
    def make(folder: Path) -> list[str]:
        place = folder / "theirs"
        place.mkdir()
        data = bytearray((folder / "photographs.tar").read_bytes())
        change(data)
        (place / "a.tar").write_bytes(data)
        return words("shards", "index", place, "--workers", 0)

    return make


def huge_size(data: bytearray) -> None:
    data[124:136] = b"\x80" + b"\xff" * 11


def negative_size(data: bytearray) -> None:
    data[124:136] = b"\xff" * 12


def shard_as(change: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> list[str]:
        file = sorted((folder / CORPUS).glob("*.tar"))[0]
        file.unlink()
        change(file)
        return command(folder)

    return make


def odd_file_name(folder: Path) -> list[str]:
    """A tar whose name is not UTF-8 and holds an escape code."""
    place = folder / "theirs"
    place.mkdir()
    shutil.copyfile(folder / "photographs.tar", os.fsencode(place) + b"/\xff\x1b[2J.tar")
    return words("shards", "index", place, "--workers", 0)


PAYLOADS = [
    Payload("manifest: a license of 10 MB", manifest(license="x" * 10_000_000), DATA),
    Payload("manifest: deep", manifest_text(deep()), DATA),
    Payload("manifest: 100 MB of lists", manifest_text("[" + "[]," * 33_000_000 + "0]"), DATA),
    Payload("manifest: a list", manifest_text("[1]"), DATA),
    Payload("manifest: no text", manifest_text(b"\xff\xfe\xfd" * 99), DATA),
    Payload("manifest: counts of texts", manifest("stats", counts={"boxes": "x"}), DATA),
    Payload("manifest: turns in a list", manifest("stats", turns=["refer"]), DATA),
    Payload("manifest: samples in a text", manifest(samples="40"), DATA),
    Payload("manifest: a negative number", manifest(dropped=-1), DATA),
    Payload("manifest: a number of 10^30", manifest(images=10**30), DATA),
    Payload("manifest: a number of shards in a list", manifest(num_shards=[1]), DATA),
    Payload("manifest: an unknown key", manifest(trust=True), DATA),
    Payload("manifest: another split", manifest(split=["a"]), DATA),
    Payload("table: objects", array("shards.npy", lambda _: npy(np.array([Trap()]), allow_pickle=True)), DATA),
    Payload("table: a pickle", array("shards.npy", lambda _: pickle.dumps(Trap())), DATA),
    Payload("table: a deep header", array("shards.npy", header("(" * 9000)), DATA),
    Payload("table: a long header", array("shards.npy", header("{'descr': '" + "x" * 1_000_000)), DATA),
    Payload(
        "table: a call in its header", array("shards.npy", header("__import__('os').system('touch sprung')")), DATA
    ),
    Payload(
        "table: a shape of 2^62",
        array("shards.npy", header("{'descr':'<u8','fortran_order':False,'shape':(1<<62,)}")),
        DATA,
    ),
    Payload("table: bytes as numbers of 8", array("shards.npy", retyped("bytes", "<f8")), DATA),
    Payload("table: names as numbers", array("shards.npy", retyped("file", "<u8")), DATA),
    Payload("table: a name above", shard_named(b"../../../../../canary"), DATA),
    Payload("table: an absolute name", shard_named(b"/etc/passwd"), DATA),
    Payload("table: a name that is not UTF-8", shard_named(b"\xff\xfe.tar"), DATA),
    Payload("table: an escape code", shard_named(b"\x1b]0;title\x07.tar"), DATA),
    Payload("table: a URL", shard_named(b"http://127.0.0.1:1/x.tar"), DATA),
    Payload("table: samples that overflow", array("shards.npy", filled("samples", 2**32 - 1)), DATA),
    Payload("index: blocks behind the end", array("index.npy", filled("block", 2**32 - 1)), DATA),
    Payload("index: texts of 65,535 blocks", array("index.npy", filled("text_blocks", 65535)), DATA),
    Payload("index: another dtype", array("index.npy", lambda file: npy(np.zeros(40, "<u8"))), DATA),
    Payload("shard: a named pipe", shard_as(os.mkfifo), DATA),
    Payload("shard: a device", shard_as(lambda file: file.symlink_to("/dev/zero")), DATA),
    Payload("shard: a folder", shard_as(Path.mkdir), DATA),
    Payload("tar: a link", tar_of(("000.jpg", tarfile.SYMTYPE, b"")), DATA),
    Payload("tar: a hard link", tar_of(("000.jpg", tarfile.LNKTYPE, b"")), DATA),
    Payload("tar: a device", tar_of(("000.jpg", tarfile.CHRTYPE, b"")), DATA),
    Payload("tar: a name above", tar_of(("../../canary.json", tarfile.REGTYPE, b"{}")), DATA),
    Payload("tar: a deep record", tar_of(("000.json", tarfile.REGTYPE, deep(50_000).encode())), DATA),
    Payload("tar: a record of numbers", tar_of(("000.json", tarfile.REGTYPE, b"[" + b"9" * 100_000 + b"]")), DATA),
    Payload("tar: a size of 2^95", raw_tar(huge_size), DATA),
    Payload("tar: a negative size", raw_tar(negative_size), DATA),
    Payload("tar: a name that is not UTF-8", odd_file_name, DATA),
]
