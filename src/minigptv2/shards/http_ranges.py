"""Reads a range of bytes over HTTP, and never more than was asked for, whatever the server sends.

The session is that of fsspec. A server that ignores the range, states another one, compresses, redirects to another
host, port or scheme, or is too slow gives an error before its bytes are kept.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

_MAX_REDIRECTS = 5
PIECE_BYTES = 1 << 16
"""How much of a body is read at once."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_REDIRECTS = (301, 302, 303, 307, 308)
_MISSING = (404, 410)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def read_range(system: Any, url: str, start: int, end: int, timeout_s: float) -> tuple[bytes, int]:
    """Bytes `start` to `end` of the file at `url`, or to its end if that comes first, and the file's size.

    `system` is an HTTP file system of fsspec whose session does not decompress. Raises `FileNotFoundError` for a
    missing file, `OSError` for any other answer than the range, and `TimeoutError` after `timeout_s` in all.
    """
    from fsspec.asyn import sync

    data: tuple[bytes, int] = sync(system.loop, _read, system, url, start, end, timeout=timeout_s)
    return data


async def _read(system: Any, url: str, start: int, end: int) -> tuple[bytes, int]:
    session = await system.set_session()
    headers = {"Range": range_header(start, end), "Accept-Encoding": "identity"}
    for _ in range(_MAX_REDIRECTS):
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status in _REDIRECTS:
                url = _redirected(url, response.headers.get("Location", ""))
                continue
            length, size = announced_range(response.status, response.headers, start, end)
            return await bounded_body(response.content.iter_chunked(PIECE_BYTES), length), size
    raise OSError(f"more than {_MAX_REDIRECTS} redirects")


def range_header(start: int, end: int) -> str:
    """The value of the header `Range` for bytes `start` to `end`."""
    return f"bytes={start}-{end - 1}"


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if _origin(target) != _origin(url):
        raise OSError("redirected to another host, port or scheme, which is not followed")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def announced_range(status: int, headers: Mapping[str, str], start: int, end: int) -> tuple[int, int]:
    """The bytes that will come and the size of the file, from the header. Raises `OSError` for another range."""
    if status in _MISSING:
        raise FileNotFoundError
    stated_by_name = {name.lower(): value for name, value in headers.items()}
    if stated_by_name.get("content-encoding", "identity").lower() != "identity":
        raise OSError("the server compresses, which was not asked for")
    stated = stated_by_name.get("content-length", "")
    if status == 200:  # the whole file: fine if it was asked for
        if start or not stated.isascii() or not stated.isdigit() or int(stated) > end:
            raise OSError("the server ignores byte ranges")
        return int(stated), int(stated)
    found = _CONTENT_RANGE.fullmatch(stated_by_name.get("content-range", ""))
    if status != 206 or found is None:
        raise OSError(f"the server answers with status {status}")
    first, last, size = (int(number) for number in found.groups())
    if first != start or last != min(end, size) - 1:
        raise OSError(f"the server sends bytes {first}-{last} of {size} instead of {start}-{end - 1}")
    if stated and stated != str(last - first + 1):
        raise OSError(f"the server states {stated} bytes for a range of {last - first + 1}")
    return last - first + 1, size


async def bounded_body(pieces: AsyncIterator[bytes], length: int) -> bytes:
    """The body in `pieces`. Raises `OSError` if it is not `length` bytes long, as soon as it is longer."""
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > length:
            raise OSError(f"the server sends more than the {length} bytes that it stated")
    if len(data) != length:
        raise OSError(f"received {len(data)} bytes instead of {length}")
    return bytes(data)
