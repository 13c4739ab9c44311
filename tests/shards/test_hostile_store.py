"""Tests that a hostile store costs no memory and no time, and leads nowhere else."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minigptv2.errors import DataError, StorageError
from minigptv2.shards import remote
from minigptv2.shards.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES
from minigptv2.shards.remote import RemoteFiles, mirror
from tests.audit import audited, sent

Answer = Callable[[BaseHTTPRequestHandler], None]


class Store(ThreadingHTTPServer):
    """Answers every request as `answer` does, and counts the bytes that it could send."""

    answer: Answer
    sent = 0
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        self.server.requests += 1
        try:
            self.server.answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def endless(self, *, chunked: bool = False) -> None:
        """256 MiB, unless the client leaves before."""
        piece = b"x" * (1 << 16)
        for _ in range(1 << 12):
            self.wfile.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
            self.server.sent += len(piece)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    running = Store(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def url(store: Store) -> str:
    return f"http://127.0.0.1:{store.server_address[1]}"


def whole(handler: Handler) -> None:
    handler.head(200)
    handler.endless()


def whole_with_length(handler: Handler) -> None:
    handler.head(200, Content_Length=str(1 << 28))
    handler.endless()


def part_that_goes_on(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.head(206, Content_Range="bytes 10-19/1000", Transfer_Encoding="chunked")
    handler.endless(chunked=True)


def part_without_length(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 10-19/1000")
    handler.endless()


def larger_part(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 10-268435465/268435466", Content_Length=str(1 << 28))
    handler.endless()


def other_length(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 10-19/1000", Content_Length=str(1 << 28))
    handler.endless()


def other_place(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 0-9/1000", Content_Length="10")
    handler.wfile.write(b"0123456789")


def too_short(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 10-19/1000", Content_Length="10")
    handler.wfile.write(b"01234")


def bomb(handler: Handler) -> None:
    data = gzip.compress(bytes(1 << 24))
    handler.head(206, Content_Range="bytes 10-19/1000", Content_Encoding="gzip", Content_Length=str(len(data)))
    handler.wfile.write(data)


def bomb_of_the_right_length(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes 10-19/1000", Content_Encoding="br", Content_Length="10")
    handler.wfile.write(bytes(10))


def odd_range(handler: Handler) -> None:
    handler.head(206, Content_Range="bytes */-1", Content_Length="10")
    handler.wfile.write(bytes(10))


@pytest.mark.parametrize(
    "answer",
    [whole, whole_with_length, part_that_goes_on, part_without_length, larger_part, other_length, other_place]
    + [too_short, bomb, bomb_of_the_right_length, odd_range],
    ids=lambda answer: answer.__name__,
)
def test_no_more_is_read_than_was_asked_for(store: Store, answer: Answer) -> None:
    store.answer = answer  # type: ignore[assignment]
    with pytest.raises(StorageError, match="download failed"):
        RemoteFiles(url(store)).read("a.tar", 1000, 10, 10)
    assert store.requests == 2 and store.sent < 2 * (16 << 20)  # what the sockets hold


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2:{port}/x", "http://localhost:{port}/x", "http://127.0.0.1:1/x", "https://127.0.0.1:{port}/x"]
    + ["file:///etc/passwd", "ftp://127.0.0.1/x", "//evil.invalid/x", "s3://bucket/x", "data:,x"],
)
@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_leads_nowhere_else(store: Store, location: str, status: int) -> None:
    port = store.server_address[1]
    store.answer = lambda handler: handler.head(status, Location=location.format(port=port))  # type: ignore[attr-defined,method-assign,assignment]
    with audited() as events, pytest.raises(StorageError, match="another host, port or scheme"):
        RemoteFiles(url(store)).read("a.tar", 1000, 10, 10)
    assert all(f"('127.0.0.1', {port})" in one or "'127.0.0.1'" in one for one in sent(events))
    assert store.requests == 2 and not any("passwd" in arguments for _, arguments in events)


def test_a_redirect_within_the_store_is_followed_and_a_loop_is_not(store: Store) -> None:
    def moved(handler: Handler) -> None:
        if handler.path == "/a.tar":
            return handler.head(302, Location="/b.tar")
        handler.head(206, Content_Range="bytes 10-19/1000", Content_Length="10")
        handler.wfile.write(b"0123456789")

    store.answer = moved  # type: ignore[assignment]
    assert RemoteFiles(url(store)).read("a.tar", 1000, 10, 10) == b"0123456789"
    store.answer = lambda handler: handler.head(302, Location=handler.path)  # type: ignore[attr-defined,method-assign,assignment]
    with pytest.raises(StorageError, match="more than 5 redirects"):
        RemoteFiles(url(store)).read("a.tar", 1000, 10, 10)


@pytest.mark.parametrize("slow", ["head", "body", "silence"])
def test_a_slow_drip_has_a_deadline_in_all(store: Store, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3)

    def drip(handler: Handler) -> None:
        if slow != "head":
            handler.head(206, Content_Range="bytes 10-19/1000", Content_Length="10")
        for _ in range(20):
            handler.wfile.write(b"" if slow == "silence" else b"H")
            time.sleep(0.1)

    store.answer = drip  # type: ignore[assignment]
    began = time.monotonic()
    with pytest.raises(StorageError, match="download failed"):
        RemoteFiles(url(store)).read("a.tar", 1000, 10, 10)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["manifest.json", "shards.npy"])
def test_small_files_have_limits(store: Store, name: str) -> None:
    manifest = {"shards_sha256": "0", "index_sha256": "0", "num_shards": 1, "samples": 1}
    large = max(MAX_MANIFEST_BYTES, 1 << 22) + 1

    def answer(handler: Handler) -> None:
        data = b"x" * large if handler.path == f"/{name}" else json.dumps(manifest).encode()
        part = data[: 1 + int(handler.headers["Range"].split("-")[1])]
        handler.head(206, Content_Range=f"bytes 0-{len(part) - 1}/{len(data)}", Content_Length=str(len(part)))
        handler.wfile.write(part)

    store.answer = answer  # type: ignore[assignment]
    with pytest.raises(DataError, match=f"{name} has {large:,} bytes; at most"):
        mirror(url(store))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[]", '"x"', "{}", '{"shards_sha256": 1}'])
def test_a_manifest_of_another_shape_is_one_error(store: Store, text: str) -> None:
    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(text)))
        handler.wfile.write(text.encode())

    store.answer = answer  # type: ignore[assignment]
    with pytest.raises(DataError, match=f"{MANIFEST_FILE}: not a valid manifest"):
        mirror(url(store))
