"""Receives the bodies of requests within limits of size, memory, time and content, before the app is called."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from minigptv2.serve.config import BodyLimits
from minigptv2.serve.request_error import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
IMAGE = b"data:image"
MAX_IMAGES = 64
"""Strings that count as images in a body. Further ones count as text."""
MARKS = b"[{,:"


class BodyMemory:
    """The bytes of all bodies that are received or used, in total and by client."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self._total = 0
        self._bodies: dict[str, list[Body]] = {}

    def open(self, receive: Receive, client: str) -> Body:
        """A body to be received for `client`. `Body.close` returns its memory."""
        body = Body(receive, self, client)
        self._bodies.setdefault(client, []).append(body)
        return body

    def use(self, body: Body, size: int) -> None:
        """Count `size` more bytes of `body`. Raises `RequestError` if that exceeds the memory."""
        capacity = self.limits.at_once * self.limits.max_bytes
        own = self._bodies[body.client]
        self._total += size
        while sum(each.size for each in own) > self.limits.client_share * capacity:
            oldest = next((each for each in own if each is not body and each.give_way()), None)
            if oldest is None:
                raise _busy()
            self._total -= oldest.release()
        if self._total > capacity:
            raise _busy()

    def close(self, body: Body) -> None:
        """Return the memory of `body`."""
        self._total -= body.release()
        own = self._bodies[body.client]
        own.remove(body)
        if not own:
            del self._bodies[body.client]


class Body:
    """The body of a request. `read` it, then use it as the `receive` of the app, then `close` it."""

    def __init__(self, receive: Receive, memory: BodyMemory, client: str) -> None:
        self.client = client
        self.size = 0
        self._receive, self._memory, self._limits = receive, memory, memory.limits
        self._messages: deque[Message] = deque()
        self._content = Content(memory.limits)
        self._deadline: asyncio.Timeout | None = None
        self._gave_way = False

    async def read(self) -> bool:
        """Receive the body. False if the client disconnected. Raises `RequestError` at a limit."""
        began, received, more = asyncio.get_running_loop().time(), 0, True
        try:
            async with asyncio.timeout(None) as self._deadline:
                while more:
                    self._deadline.reschedule(self._next_deadline(began, received))
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part = message.get("body", b"")
                    received += len(part)
                    self._take(part, received)
                    self._messages.append(message)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            if self._gave_way:
                raise _busy() from error
            raise RequestError(self._too_slow(received), status=408) from error
        finally:
            self._deadline = None
        return True

    async def __call__(self) -> Message:
        return self._messages.popleft() if self._messages else await self._receive()

    def give_way(self) -> bool:
        """Stop receiving, for a newer body of the client. False if the body is complete."""
        if self._deadline is None or self._gave_way:
            return False
        self._gave_way = True
        self._deadline.reschedule(asyncio.get_running_loop().time())
        return True

    def release(self) -> int:
        """Forget the bytes. Returns their number."""
        released, self.size = self.size, 0
        self._messages.clear()
        return released

    def close(self) -> None:
        """Return the memory."""
        self._memory.close(self)

    def _take(self, part: bytes, received: int) -> None:
        if self._gave_way:
            raise _busy()
        if received > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        self._content.check(part)
        self.size += len(part)
        self._memory.use(self, len(part))

    def _next_deadline(self, began: float, received: int) -> float:
        limits, now = self._limits, asyncio.get_running_loop().time()
        at_least_rate = began + limits.grace_s + received / limits.min_bytes_per_s
        return min(now + limits.pause_s, began + limits.timeout_s, at_least_rate)

    def _too_slow(self, received: int) -> str:
        limits = self._limits
        return (
            f"the body is too slow: {received} bytes arrived. The limits are {limits.min_bytes_per_s:g} bytes per "
            f"second after {limits.grace_s:g} s, pauses of {limits.pause_s:g} s and {limits.timeout_s:g} s in total"
        )


class Content:
    """Counts the text and the marks of a JSON document while it arrives.

    The strings of images count for neither. Such a string ends at the next quotation mark, so it has no element of the
    document inside. Outside a string, its first bytes are not JSON, and the parser stops there.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._text = self._marks = self._images = 0
        self._in_image = False
        self._tail = b""

    def check(self, part: bytes) -> None:
        """Count `part`. Raises `RequestError` at a limit."""
        start = 0
        while start < len(part):
            if self._in_image:
                end = part.find(b'"', start)
                self._in_image = end < 0
                end = len(part) if end < 0 else end
                if not part[start:end].isascii():
                    raise RequestError("an image address must be ASCII text", param="messages")
            else:
                end = self._image_after(part, start)
                self._count(part[start:end])
            start = end

    def _image_after(self, part: bytes, start: int) -> int:
        """Where the next image in `part` begins, or the end of `part`. A beginning may lie in the part before."""
        if self._images >= MAX_IMAGES:
            return len(part)
        joined = self._tail + part[start:]
        found = joined.lower().find(IMAGE)
        self._tail = b"" if found >= 0 else joined[-len(IMAGE) + 1 :]
        if found < 0:
            return len(part)
        self._images += 1
        self._in_image = True
        return start + max(0, found + len(IMAGE) - (len(joined) - len(part) + start))

    def _count(self, text: bytes) -> None:
        self._text += len(text)
        self._marks += sum(text.count(mark) for mark in MARKS)
        if self._text > self._limits.max_text_bytes:
            raise RequestError(
                f"the body has more than {self._limits.max_text_bytes} bytes outside images: more than the limit "
                f"of {self._limits.max_text} characters",
                status=413,
            )
        if self._marks > self._limits.max_marks:
            raise RequestError(f"the JSON has more than {self._limits.max_marks} brackets, commas and colons")


def too_large(limit: int) -> RequestError:
    """The error for a body of more than `limit` bytes."""
    return RequestError(f"the body exceeds the limit of {limit // 2**20} MiB", status=413)


def _busy() -> RequestError:
    return RequestError("the memory for request bodies is full: try again later", status=429, code="busy")
