"""Tests that a store behind `s3://` sends no more than was asked for, with a client whose store lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from minigptv2.errors import DataError, StorageError
from minigptv2.shards import remote
from minigptv2.shards.http_ranges import PIECE_BYTES
from minigptv2.shards.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES
from minigptv2.shards.remote import RemoteFiles, mirror

Reply = tuple[int, dict[str, str], bytes | None]
"""Status, header and body of a reply. A body of None has no end."""


class Body:
    """A body as the client gives it: an iterator of pieces. It counts what was taken from it."""

    def __init__(self, data: bytes | None, pause_s: float) -> None:
        self.data, self.pause_s = data, pause_s
        self.taken, self.closed = 0, False

    async def iter_chunks(self, size: int) -> AsyncIterator[bytes]:
        while self.data is None:
            self.taken += size
            await asyncio.sleep(self.pause_s)
            yield bytes(size)
        yield self.data

    def close(self) -> None:
        self.closed = True


class Client:
    """The part of `s3fs.S3FileSystem` that is used. `answer` makes a reply, or raises, of the asked range."""

    def __init__(self, answer: Callable[[str], Reply], pause_s: float = 0.0) -> None:
        from fsspec.asyn import get_loop

        self.loop, self.answer, self.pause_s = get_loop(), answer, pause_s
        self.bodies: list[Body] = []

    def split_path(self, url: str) -> tuple[str, str, None]:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return bucket, key, None

    async def _call_s3(self, method: str, *, Bucket: str, Key: str, Range: str) -> dict[str, Any]:
        assert (method, Bucket) == ("get_object", "bucket") and Key
        status, headers, data = self.answer(Range)
        self.bodies.append(Body(data, self.pause_s))
        return {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}, "Body": self.bodies[-1]}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Client]:
    """Makes a client with the given answers, and lets the package use it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)

    def made(answer: Callable[[str], Reply], pause_s: float = 0.0) -> Client:
        client = Client(answer, pause_s)
        monkeypatch.setattr(remote, "_file_system", lambda url: client)
        return client

    return made


def part(first: int, last: int, size: int, **more: str) -> dict[str, str]:
    return {"content-range": f"bytes {first}-{last}/{size}", **{name.replace("_", "-"): more[name] for name in more}}


LIES: dict[str, Reply] = {
    "the whole file without an end": (200, {}, None),
    "the whole file with its length": (200, {"content-length": str(1 << 40)}, None),
    "a part without an end": (206, part(10, 19, 1000), None),
    "a part of the right length without an end": (206, part(10, 19, 1000, content_length="10"), None),
    "a larger part": (206, part(10, 1 << 40, 1 << 41), None),
    "another length": (206, part(10, 19, 1000, content_length=str(1 << 40)), None),
    "another place": (206, part(0, 9, 1000), b"0123456789"),
    "too little": (206, part(10, 19, 1000), b"01234"),
    "one byte more": (206, part(10, 19, 1000), b"0123456789a"),
    "an odd range": (206, {"content-range": "bytes */-1"}, bytes(10)),
    "a negative size": (206, part(10, 19, -1000), bytes(10)),
    "no range": (206, {}, bytes(10)),
}


@pytest.mark.parametrize("reply", LIES.values(), ids=LIES)
def test_no_more_is_read_than_was_asked_for(store: Callable[..., Client], reply: Reply) -> None:
    client = store(lambda asked: reply)
    with pytest.raises(StorageError, match="download failed"):
        RemoteFiles("s3://bucket/x").read("a.tar", 1000, 10, 10)
    assert len(client.bodies) == 2
    assert all(body.closed and body.taken <= PIECE_BYTES for body in client.bodies)


def test_a_true_part_is_read_whatever_encoding_its_owner_noted(store: Callable[..., Client]) -> None:
    def answer(asked: str) -> Reply:
        assert asked == "bytes=10-19"
        return 206, part(10, 19, 1000, content_encoding="aws-chunked"), b"0123456789"

    client = store(answer)
    assert RemoteFiles("s3://bucket/x").read("a.tar", 1000, 10, 10) == b"0123456789"
    assert [body.closed for body in client.bodies] == [True]


def test_a_slow_store_has_a_deadline_in_all(store: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.1)
    store(lambda asked: (206, part(0, (1 << 30) - 1, 1 << 30), None), pause_s=0.01)
    with pytest.raises(StorageError, match="Timeout"):
        RemoteFiles("s3://bucket/x").read("a.tar", 1 << 30, 0, 1 << 30)


@pytest.mark.parametrize("size", [MAX_MANIFEST_BYTES + 1, 1 << 40, 10**17])
def test_a_manifest_has_a_limit(store: Callable[..., Client], size: int) -> None:
    def answer(asked: str) -> Reply:
        last = int(asked.split("-")[1])
        return 206, part(0, last, size), bytes(last + 1)

    client = store(answer)
    with pytest.raises(DataError, match=f"{MANIFEST_FILE} has {size:,} bytes; at most"):
        mirror("s3://bucket/x")
    assert len(client.bodies) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError(5, "x"), TimeoutError()])
def test_an_error_of_the_client_is_one_of_ours(store: Callable[..., Client], error: Exception) -> None:
    def answer(asked: str) -> Reply:
        raise error

    store(answer)
    with pytest.raises(DataError if isinstance(error, FileNotFoundError) else StorageError):
        RemoteFiles("s3://bucket/x").read("a.tar", 1000, 10, 10)
