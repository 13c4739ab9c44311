"""Tests that hostile requests are refused early: nothing is fetched, read, written or executed."""

from __future__ import annotations

import io
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from minigptv2.errors import ConfigError
from minigptv2.predict.predictor import Predictor
from minigptv2.serve.config import Access, Limits
from tests.serve.running import NAME, running
from tests.serve.test_protocol import GOOD, ask, url_of

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, page=True, limits=Limits(max_new_tokens=8)) as address:
        yield address


def post(address: str, content: Any, **headers: str) -> httpx.Response:
    return httpx.post(
        address + "/v1/chat/completions",
        headers={"content-type": "application/json", **headers},
        timeout=60,
        **({"json": content} if isinstance(content, dict) else {"content": content}),
    )


def about(url: str) -> dict[str, Any]:
    return {"model": NAME, "messages": [ask("what?", url)], "max_tokens": 2}


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header gives `width` x `height` RGB pixels and whose data are `pixels`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def as_url(data: bytes) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(18_000, 10_000), "180 megapixels, the limit is 64"),
        (png(5_000, 4_900, bytes(73_504_900)), ""),  # a decompression bomb within the limit: 71 kB that unpack to 73 MB
        (png(60_000, 60_000), "3600 megapixels, the limit is 64"),
        (png(9_000, 9_000), "81 megapixels, the limit is 64"),
        (png(2**31 - 1, 2**31 - 1), "image"),
        (png(0, 5), "0 x 5 pixels"),
        (png(100, 100, b"few"), "image: truncated after 0 %"),
    ],
)
def test_an_image_that_is_too_large_is_refused_by_its_header(server: str, data: bytes, reason: str) -> None:
    assert len(data) < 1_000_000
    tracemalloc.start()
    reply = post(server, about(as_url(data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if reason:
        assert reply.status_code == 400 and reason in reply.json()["error"]["message"]
        assert peak < 20e6
    else:
        assert reply.status_code == 200


def test_an_image_within_the_limit_is_accepted(server: str) -> None:
    assert post(server, about(url_of(Image.new("RGB", (3000, 2000)), "JPEG"))).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/x.png",
        "http://localhost:{port}/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "ftp://127.0.0.1:{port}/x",
        "data:text/html;base64,AAAA",
        "data:image/png,http://127.0.0.1:{port}/",
        "data:image/png;base64,/etc/passwd#",
    ],
)
def test_no_address_is_fetched_and_no_path_opened(server: str, url: str) -> None:
    calls: list[Any] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)

        def accept() -> None:
            try:
                calls.append(listener.accept())
            except TimeoutError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        reply = post(server, about(url.format(port=listener.getsockname()[1])))
        thread.join()
    assert reply.status_code == 400 and not calls and "root:" not in reply.text


def test_a_megabyte_of_text_is_refused(server: str) -> None:
    began = time.monotonic()
    reply = post(server, {"model": NAME, "messages": [{"role": "user", "content": "a" * 1_000_000}]})
    assert reply.status_code == 413 and "limit of 32000" in reply.json()["error"]["message"]
    assert time.monotonic() - began < 5


def test_a_body_over_the_limit_is_cut_off_even_if_it_says_no_length(predictor: Predictor) -> None:
    with running(predictor, limits=Limits(max_body_mib=1)) as address:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(400):
                sent += 2**16
                yield b" " * 2**16

        try:
            assert post(address, endless()).status_code == 413
        except httpx.WriteError:
            assert sent < 20 * 2**20
        assert post(address, b" " * (2**20 + 1)).status_code == 413
        assert post(address, GOOD).status_code == 200


MISSING_ROUTES = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/file=/etc/passwd",
    "/config",
    "/page",
    "/page/",
    "/page/../setup.py",
    "/page/%2e%2e/%2e%2e/%2e%2e/setup.py",
    "/page/..%2f..%2f..%2f..%2fetc/passwd",
    "/page//etc/passwd",
    "/page/index.html",
    "/page/examples/99",
    "/page/examples/-1",
    "/page/examples/0/../../main.js",
    "/static/../../../../etc/passwd",
    "/docs",
    "/../../etc/passwd",
    "//etc/passwd",
    "/v1/models/../../etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
]


@pytest.mark.parametrize("path", MISSING_ROUTES)
def test_no_path_leads_outside(server: str, path: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    for method in ("GET", "POST"):
        with socket.create_connection((host, int(port))) as connection:  # clients would normalize the path
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
            reply = b"".join(iter(lambda c=connection: c.recv(65536), b""))
        status = int(reply.split()[1])
        assert 400 <= status < 500, reply[:300]
        assert b"root:" not in reply and b"find_packages" not in reply


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:7860"}, 421),
        ({"host": ""}, 421),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "localhost:1234"}, 200),
    ],
)
def test_a_foreign_page_cannot_use_the_browser_of_a_visitor(server: str, headers: dict[str, str], status: int) -> None:
    reply = post(server, GOOD, **headers)
    assert reply.status_code == status and "access-control-allow-origin" not in reply.headers


def test_a_password_guards_all_but_health(predictor: Predictor) -> None:
    with running(predictor, page=True, access=Access(password=PASSWORD)) as address:
        for path in ("/", "/page/main.js", "/page/settings.json", "/metrics", "/v1/models", "/page/examples/0"):
            reply = httpx.get(address + path)
            assert reply.status_code == 401 and "Basic" in reply.headers["www-authenticate"], path
        assert httpx.get(address + "/health").status_code == 200
        assert post(address, GOOD).status_code == 401
        assert post(address, GOOD, authorization="Bearer wrong").status_code == 401
        assert post(address, GOOD, authorization="Basic !!!").status_code == 401
        assert post(address, GOOD, authorization=f"Bearer {PASSWORD}").status_code == 200
        assert httpx.get(address + "/", auth=("anyone", PASSWORD)).status_code == 200


def test_a_public_address_requires_a_password() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "server.example"):
        with pytest.raises(ConfigError, match="there is no password"):
            Access(host=host)
        assert not Access(host=host, password=PASSWORD).is_loopback
    with pytest.raises(ConfigError, match="at least 8"):
        Access(password="short")
    assert Access().is_loopback and Access(host="::1").is_loopback and Access(host="localhost").is_loopback
    named = Access(host="0.0.0.0", password=PASSWORD, allowed_hosts=("box.example",))
    assert named.admits_host("box.example:7860") and named.admits_host("10.0.0.7:7860")
    assert not named.admits_host("other.example")
    upper = Access(host="Box.Example", password=PASSWORD, allowed_hosts=("Chat.Example.org",))
    assert upper.admits_host("chat.example.org") and upper.admits_host("CHAT.example.org:80")
    assert upper.admits_host("box.example:7860") and Access(host="LocalHost").is_loopback


def test_nothing_is_written_where_the_server_runs(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert post(server, GOOD).status_code == 200
    assert not list(tmp_path.iterdir())
    assert io.BytesIO(httpx.get(server + "/").content).read(15) == b"<!doctype html>"
