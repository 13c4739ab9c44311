"""Tests bodies that stay incomplete: how much memory they use together, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from minigptv2.serve import access as guard_module
from minigptv2.serve.access import BODIES_AT_ONCE, Guard, Message, Receive, Scope, Send
from minigptv2.serve.config import Access

SCOPE = {
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

    def __init__(self, guard: Guard, first: bytes) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": first, "more_body": True})
        self.sent: list[Any] = []
        self._task = asyncio.ensure_future(guard(dict(SCOPE), self._messages.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def finish(self, last: bytes = b"") -> int:
        await self._messages.put({"type": "http.request", "body": last, "more_body": False})
        return await self.answer()

    async def leave(self) -> None:
        await self._messages.put({"type": "http.disconnect"})
        await self._task

    async def answer(self) -> int:
        await asyncio.wait_for(self._task, 10)
        return int(self.sent[0]["status"])


def test_stalled_bodies_use_bounded_memory_together() -> None:
    async def many() -> None:
        guard = Guard(echo, Access(), max_body=100)
        stalled = [Upload(guard, b"x" * 100) for _ in range(BODIES_AT_ONCE)]
        late = Upload(guard, b"x")
        assert await late.answer() == 429 and (b"connection", b"close") in late.sent[0]["headers"]
        await stalled[0].leave()
        assert stalled[0].sent == []
        after = Upload(guard, b"ab")
        assert await after.finish(b"c") == 200 and after.sent[1]["body"] == b"abc"
        assert await stalled[1].finish(b"x") == 413
        assert [await upload.finish() for upload in stalled[2:]] == [200] * (BODIES_AT_ONCE - 2)
        again = [Upload(guard, b"x" * 100) for _ in range(BODIES_AT_ONCE)]
        assert [await upload.finish() for upload in again] == [200] * BODIES_AT_ONCE

    asyncio.run(many())


def test_a_body_that_pauses_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence() -> int:
        return await Upload(Guard(echo, Access(), max_body=100), b"x").answer()

    monkeypatch.setattr(guard_module, "SILENCE_S", 0.01)
    assert asyncio.run(silence()) == 408
