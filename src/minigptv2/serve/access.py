"""Checks every request before it reaches a route: host name, password, body size, and the list of routes.

It is a plain ASGI app around the API and the page. Routes that are not listed below answer 404.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from minigptv2.serve.bodies import BodyMemory, Message, Receive, too_large
from minigptv2.serve.config import Access, BodyLimits
from minigptv2.serve.connections import MAX_HEAD, client_key
from minigptv2.serve.passwords import Password
from minigptv2.serve.request_error import RequestError

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES = {
    "GET": (
        "/health",
        "/metrics",
        "/openapi.json",
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
MAX_TARGET = 8 * 2**10
"""The longest path with its query, in bytes."""
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

    def __init__(self, app: App, access: Access, bodies: BodyLimits) -> None:
        self._app, self._access = app, access
        self._memory = BodyMemory(bodies)
        self._password = Password(access.password) if access.password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        client = client_key((scope.get("client") or ("", 0))[0])
        body = self._memory.open(receive, client)
        try:
            await self._check(scope, client)
            if await body.read():
                await self._app(scope, body, _with_headers(send))
        except RequestError as error:
            await refuse(send, error)
        finally:
            body.close()

    async def _check(self, scope: Scope, client: str) -> None:
        _check_size(scope)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if not self._access.admits_host(headers.get("host", "")):
            raise RequestError(
                f"unknown host name {headers.get('host', '')!r}; start the server with --allowed-host to allow it",
                status=421,
            )
        if not _exists(method, path):
            allow = tuple(each for each in ROUTES if _exists(each, path))
            if not allow:
                raise RequestError(f"no route {method} {path}", status=404)
            raise RequestError(f"{path} allows {', '.join(allow)}, got {method}", status=405, allow=allow)
        if self._password and path not in OPEN_TO_ALL:
            await self._password.check(client, headers.get("authorization", ""))
        if method == JSON_ONLY and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise RequestError("Content-Type must be application/json", status=415)
        length, largest = headers.get("content-length", "0"), self._memory.limits.max_bytes
        if not (length.isascii() and length.isdigit()) or len(length) > 20 or int(length) > largest:
            raise too_large(largest)


def _check_size(scope: Scope) -> None:
    """Raise `RequestError` if the path or the headers are too long."""
    if len(scope["path"]) + len(scope.get("query_string", b"")) > MAX_TARGET:
        raise RequestError(f"the path exceeds the limit of {MAX_TARGET} bytes", status=414)
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
        raise RequestError(f"the headers exceed the limit of {MAX_HEAD} bytes", status=431)


def _exists(method: str, path: str) -> bool:
    reading = "GET" if method == "HEAD" else method
    if path in ROUTES.get(reading, ()):
        return True
    return reading == "GET" and path.startswith(FOLDERS) and ".." not in path.split("/")


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
    if error.allow:
        headers.append((b"allow", ", ".join(error.allow).encode()))
    headers.append((b"connection", b"close"))  # the rest of the body is unread
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
