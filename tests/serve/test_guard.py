"""Tests the limits of bodies and heads: memory, time, content and size."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from minigptv2.serve.access import Guard, Scope, Send
from minigptv2.serve.bodies import Message, Receive
from minigptv2.serve.config import Access, BodyLimits

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Upload:
    """A request that has sent `first`. `finish` sends its last bytes and `leave` disconnects."""

    def __init__(self, guard: Guard, first: bytes, address: str = "127.0.0.1", **changes: Any) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": first, "more_body": True})
        self.sent: list[Any] = []
        self._task = asyncio.ensure_future(
            guard({**SCOPE, "client": (address, 1), **changes}, self._messages.get, self._send)
        )

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def send(self, part: bytes) -> None:
        await self._messages.put({"type": "http.request", "body": part, "more_body": True})

    async def finish(self, last: bytes = b"") -> int:
        await self._messages.put({"type": "http.request", "body": last, "more_body": False})
        return await self.answer()

    async def leave(self) -> None:
        await self._messages.put({"type": "http.disconnect"})
        await self._task

    async def answer(self) -> int:
        await asyncio.wait_for(self._task, 10)
        return int(self.sent[0]["status"])


SMALL = BodyLimits(max_bytes=100, max_text=10, max_text_bytes=100, max_marks=10)


def guarded(limits: BodyLimits = SMALL, **changes: Any) -> Guard:
    return Guard(echo, Access(), replace(limits, **changes))


def test_stalled_bodies_use_bounded_memory_together() -> None:
    async def many() -> None:
        guard = guarded(at_once=8, client_share=1)
        stalled = [Upload(guard, b"x" * 100, f"10.0.0.{number}") for number in range(8)]
        late = Upload(guard, b"x")
        assert await late.answer() == 429 and (b"connection", b"close") in late.sent[0]["headers"]
        await stalled[0].leave()
        assert stalled[0].sent == []
        after = Upload(guard, b"ab")
        assert await after.finish(b"c") == 200 and after.sent[1]["body"] == b"abc"
        assert await stalled[1].finish(b"x") == 413
        assert [await upload.finish() for upload in stalled[2:]] == [200] * 6
        again = [Upload(guard, b"x" * 100) for _ in range(8)]
        assert [await upload.finish() for upload in again] == [200] * 8

    asyncio.run(many())


@pytest.mark.parametrize("addresses", [["1.1.1.1"] * 6, ["::ffff:1.1.1.1"] * 6, [f"2001:db8::{n}" for n in range(6)]])
def test_a_client_that_holds_its_share_loses_its_oldest_body(addresses: list[str]) -> None:
    async def many() -> None:
        guard = guarded(at_once=4, client_share=0.5)
        own = [Upload(guard, b"x" * 50, address) for address in addresses]
        other = Upload(guard, b"x" * 100, "9.9.9.9")
        assert [await upload.answer() for upload in own[:2]] == [429, 429]
        assert [await upload.finish() for upload in [*own[2:], other]] == [200] * 5

    asyncio.run(many())


@pytest.mark.parametrize(
    "limits",
    [
        {"pause_s": 0.05},
        {"timeout_s": 0.05},
        {"grace_s": 0.02, "min_bytes_per_s": 1000},
    ],
)
def test_a_slow_body_is_refused(limits: dict[str, float]) -> None:
    async def drip() -> int:
        upload = Upload(guarded(**limits), b"x")
        for _ in range(20):
            await asyncio.sleep(0.01 if "pause_s" not in limits else 0)
            await upload.send(b"x")
        return await upload.answer()

    assert asyncio.run(drip()) == 408


def test_a_steady_body_is_accepted() -> None:
    async def steady() -> int:
        upload = Upload(guarded(grace_s=0.1, min_bytes_per_s=10, pause_s=1, timeout_s=5), b"x")
        for _ in range(10):
            await asyncio.sleep(0.02)
            await upload.send(b"x")
        return await upload.finish()

    assert asyncio.run(steady()) == 200


JPEG = b'"data:image/jpeg;base64,' + b"A" * 500 + b'"'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * 101, 413),
        (JPEG, 200),
        (JPEG.replace(b"/", b"\\/"), 200),
        (JPEG.replace(b"data:image", b"DATA:Image"), 200),
        (b"x" * 80 + JPEG, 200),
        (b"x" * 101 + JPEG, 413),
        (JPEG + b"x" * 101, 413),
        (JPEG + b"x" * 60 + JPEG + b"x" * 60, 413),
        (JPEG.replace(b"AAA", "\N{GRINNING FACE}".encode()), 400),
        (b"[" * 11, 400),
        (b"{" * 11, 400),
        (b'"":' * 11, 400),
        (b"1," * 11, 400),
        (JPEG + b"[[,,{{::,,,", 400),
        (b'"data:image\\"' + b"[" * 11, 400),
        (b"[{,:" * 2, 200),
    ],
)
@pytest.mark.parametrize("part", [1, 7, 64, 10_000])
def test_text_and_marks_are_limited_outside_images(body: bytes, status: int, part: int) -> None:
    async def sent() -> int:
        upload = Upload(guarded(max_bytes=2000), b"")
        for start in range(0, len(body), part):
            await upload.send(body[start : start + part])
        return await upload.finish()

    assert asyncio.run(sent()) == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"path": "/" + "x" * 9000}, 414),
        ({"query_string": b"x" * 9000}, 414),
        ({"headers": [*SCOPE["headers"], (b"x", b"y" * 33_000)]}, 431),
        ({"headers": [*SCOPE["headers"], *[(b"x", b"y" * 100)] * 400]}, 431),
        ({"headers": [*SCOPE["headers"], (b"content-length", "\u00b2".encode("latin-1"))]}, 413),
        ({"headers": [*SCOPE["headers"], (b"content-length", b"9" * 5000)]}, 413),
        ({"headers": [*SCOPE["headers"], (b"content-length", b"-1")]}, 413),
        ({"method": "BREW"}, 405),
        ({"method": "CONNECT"}, 405),
        ({"method": "OPTIONS"}, 405),
        ({"method": ""}, 405),
        ({"client": None}, 200),
    ],
)
def test_an_odd_head_is_refused(changes: dict[str, Any], status: int) -> None:
    async def sent() -> int:
        return await Upload(guarded(), b"", **changes).finish()

    assert asyncio.run(sent()) == status
