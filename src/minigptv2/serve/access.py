"""Checks every request before it reaches a route: host name, password, body size, and the list of routes.

It is a plain ASGI app around the API and the page. Routes that are not listed below answer 404.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from minigptv2.serve.config import Access
from minigptv2.serve.openai_api import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES = {
    "GET": (
        "/health",
        "/metrics",
        "/v1/models",
        "/",
    ),
    "POST": (
        "/v1/chat/completions",
        "/page/image",
    ),
}
FOLDERS = ("/v1/models/", "/page/")
"""Prefixes of read-only routes that end in a name."""
OPEN_TO_ALL = ("/health",)
"""Routes that need no password, because health probes have none."""
JSON_ONLY = "POST"
"""The method that requires JSON: a foreign page can make a browser post a form unasked, but not JSON."""
WRONG_PASSWORD_S = 0.5
"""Delay of the answer to a wrong password, in seconds."""
BODIES_AT_ONCE = 8
"""The memory for the bodies of all unanswered requests, in bodies of the largest size."""
SILENCE_S = 30.0
"""The longest pause between two parts of a body, in seconds."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        b"trusted-types 'none'",
    ),
)
"""Headers of every response: the browser loads nothing from other hosts, runs no script but the files of the page, and
shows the page in no frame."""


class Guard:
    """An ASGI app around `app` that passes on the requests which `access` and the list of routes allow."""

    def __init__(self, app: App, access: Access, *, max_body: int) -> None:
        self._app, self._access, self._max_body = app, access, max_body
        self._budget = _MemoryBudget(BODIES_AT_ONCE * max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = _LimitedBody(receive, self._max_body, self._budget)
        try:
            await self._check(scope)
            if await body.read():
                await self._app(scope, body, _with_headers(send))
        except RequestError as error:
            await refuse(send, error)
        finally:
            body.close()

    async def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if not self._access.admits_host(headers.get("host", "")):
            raise RequestError(
                f"unknown host name {headers.get('host', '')!r}; start the server with --allowed-host to allow it",
                status=421,
            )
        if not _exists(method, path):
            raise RequestError(f"no route {method} {path}", status=404)
        if self._access.password and path not in OPEN_TO_ALL and not self._knows_password(headers):
            await asyncio.sleep(WRONG_PASSWORD_S)
            raise RequestError("wrong or missing password", status=401, code="invalid_api_key")
        if method == JSON_ONLY and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise RequestError("Content-Type must be application/json", status=415)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            raise _too_large(self._max_body)

    def _knows_password(self, headers: dict[str, str]) -> bool:
        """Whether the Authorization header holds the password: Bearer (an API key) or Basic (with any user name)."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.encode(), (self._access.password or "").encode())


def _exists(method: str, path: str) -> bool:
    reading = "GET" if method == "HEAD" else method
    if path in ROUTES.get(reading, ()):
        return True
    return reading == "GET" and path.startswith(FOLDERS) and ".." not in path.split("/")


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body exceeds the limit of {limit // 2**20} MiB", status=413)


@dataclass
class _MemoryBudget:
    """The bytes that are still free for the bodies of all requests together."""

    left: int


class _LimitedBody:
    """The body of a request, received completely before the app is called.

    Reading stops at `limit` bytes, also if the request states no length or a wrong one. The bytes count against
    `budget` until `close`.
    """

    def __init__(self, receive: Receive, limit: int, budget: _MemoryBudget) -> None:
        self._receive, self._limit, self._budget = receive, limit, budget
        self._size = 0
        self._messages: deque[Message] = deque()

    async def read(self) -> bool:
        """Receive the body. False if the client disconnected. Raises `RequestError` at a limit or after a pause."""
        more = True
        while more:
            try:
                message = await asyncio.wait_for(self._receive(), SILENCE_S)
            except TimeoutError as error:
                raise RequestError(f"received nothing of the request body for {SILENCE_S:g} s", status=408) from error
            if message["type"] == "http.disconnect":
                return False
            length = len(message.get("body", b""))
            self._size += length
            self._budget.left -= length
            if self._size > self._limit:
                raise _too_large(self._limit)
            if self._budget.left < 0:
                raise RequestError("the memory for request bodies is full: try again later", status=429, code="busy")
            self._messages.append(message)
            more = message.get("more_body", False)
        return True

    async def __call__(self) -> Message:
        return self._messages.popleft() if self._messages else await self._receive()

    def close(self) -> None:
        """Return the bytes to the budget."""
        self._budget.left += self._size
        self._size = 0


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sender


async def refuse(send: Send, error: RequestError) -> None:
    """Send the error as a JSON response."""
    body = json.dumps(error.as_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="minigptv2", charset="UTF-8"'))
    if error.status in (408, 413, 429):  # the connection cannot be reused: the rest of the body is unread
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
