"""Tests the limits of connections over real sockets: unfinished requests, slow readers, and too many of either."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from minigptv2.errors import ConfigError
from minigptv2.predict.predictor import Predictor
from minigptv2.serve import connections as connections_module
from minigptv2.serve.config import Access, ClientLimits
from minigptv2.serve.connections import RESERVED_FILES, client_key, usable_connections
from tests.serve.running import running

LIMITS = ClientLimits(max_connections=12, max_client_connections=8, head_timeout_s=0.3, write_timeout_s=0.3)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, clients=LIMITS) as address:
        yield address


def connect(server: str, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=3, source_address=(source, 0))


def closed_after(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closes `connection`, to which `drip` is sent every 50 ms."""
    began = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - began < 3:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(2**16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: loc", b""),
        (b"GET /health HTTP/1.1\r\n", b"X-A: b\r\n"),
        (b"", b"G"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal", b"a"),
        (b"\r\n", b"\r\n"),
        (HEAD.replace(b"/v1/", b"/v2/") + b"Content-Length: 1000\r\n\r\n", b"x"),
        (HEAD.replace(b"json", b"text") + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_an_unfinished_request_is_closed(server: str, first: bytes, drip: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(first)
        assert closed_after(connection, drip) < 2


@pytest.mark.parametrize("path", [b"/metrics", b"/health", b"/v1/models/" + b"x" * 4000])
def test_a_client_that_does_not_read_is_closed(server: str, path: bytes) -> None:
    requests = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path * 5000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.setblocking(False)
        with pytest.raises(ConnectionError):
            send_for(connection, requests, 20)


def send_for(connection: socket.socket, data: bytes, seconds: float) -> None:
    """Send `data` again and again."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            connection.send(data)
        except BlockingIOError:
            time.sleep(0.02)


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\n", HEAD + b"Content-Length: 1000\r\n\r\n{"])
@pytest.mark.parametrize("sources", [["127.0.0.1"], [f"127.0.0.{number}" for number in range(2, 7)]])
def test_unfinished_requests_keep_no_one_out(server: str, first: bytes, sources: list[str]) -> None:
    with ExitStack() as held:
        for number in range(40):
            connection = held.enter_context(connect(server, sources[number % len(sources)]))
            connection.sendall(first)
            if number % 10 == 0:
                assert httpx.get(server + "/health").status_code == 200
        assert httpx.get(server + "/v1/models").status_code == 200


def test_a_connection_with_a_complete_request_is_kept(predictor: Predictor) -> None:
    limits = ClientLimits(max_connections=2, max_client_connections=2)
    with running(predictor, clients=limits, script=lambda request: "word " * 20, slow_s=0.02) as address:
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        with (
            httpx.stream("POST", address + "/v1/chat/completions", json=chat) as first,
            httpx.stream("POST", address + "/v1/chat/completions", json=chat) as second,
        ):
            assert first.status_code == second.status_code == 200
            assert httpx.get(address + "/health").status_code == 503
            assert [list(answer.iter_lines())[-2] for answer in (first, second)] == ["data: [DONE]"] * 2
        assert httpx.get(address + "/health").status_code == 200


@pytest.mark.parametrize(
    ("limits", "wanted", "allowed"),
    [
        ((2000, 4000), 1000, 1000),
        ((300, 4000), 1000, 1000),
        ((300, 400), 1000, 400 - RESERVED_FILES),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1000, 1000),
        ((300, resource.RLIM_INFINITY), 1000, 1000),
        ((64, 64), 1000, None),
    ],
)
def test_connections_leave_file_handles(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int, allowed: int | None
) -> None:
    monkeypatch.setattr(connections_module.resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(connections_module.resource, "setrlimit", lambda kind, values: None)
    if allowed is None:
        with pytest.raises(ConfigError, match="ulimit -n"):
            usable_connections(wanted)
    else:
        assert usable_connections(wanted) == allowed


def test_clients_are_counted_by_address() -> None:
    assert client_key("10.0.0.1") == client_key("::ffff:10.0.0.1") == "10.0.0.1"
    assert client_key("2001:db8::1") == client_key("2001:db8::2:3") != client_key("2001:db8:1::1")
    assert client_key("fe80::1%eth0") == client_key("fe80::2") and client_key("socket") == "socket"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_a_client_cannot_choose_its_address(predictor: Predictor, header: str) -> None:
    """Wrong passwords are paced although each names another client. `--trusted-proxy` admits the header."""
    with running(predictor, access=Access(password="correct horse")) as address:

        def guess(number: int) -> float:
            began = time.monotonic()
            wrong = {"authorization": "Bearer wrong", header: f"10.0.0.{number}"}
            assert httpx.get(address + "/v1/models", headers=wrong).status_code == 401
            return time.monotonic() - began

        assert sum(map(guess, range(2))) > 0.9


@pytest.mark.parametrize(("origin", "allowed"), [("https://a.example", True), ("https://b.example", False)])
def test_pages_of_listed_origins_may_use_the_api(predictor: Predictor, origin: str, allowed: bool) -> None:
    with running(predictor, access=Access(cors_origins=("https://a.example",))) as address:
        asks = {"origin": origin, "access-control-request-method": "POST"}
        for reply in (
            httpx.options(address + "/v1/chat/completions", headers=asks),
            httpx.get(address + "/health", headers=asks),
        ):
            assert reply.headers.get("access-control-allow-origin") == (origin if allowed else None)
