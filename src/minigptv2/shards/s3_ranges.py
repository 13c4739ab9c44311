"""Reads a range of bytes from an S3 store, and never more than was asked for, whatever the store sends.

The client is that of s3fs, which signs the request and follows the redirects between regions. Its own `cat_file` reads
a body to its end. Here the announced range is checked first, and the body is read in pieces. The body of an error
reply is read by the client, without a limit here.
"""

from __future__ import annotations

from typing import Any

from minigptv2.shards.http_ranges import PIECE_BYTES, announced_range, bounded_body, range_header


def read_range(system: Any, url: str, start: int, end: int, timeout_s: float) -> tuple[bytes, int]:
    """As `http_ranges.read_range`, for an S3 file system of fsspec."""
    from fsspec.asyn import sync

    data: tuple[bytes, int] = sync(system.loop, _read, system, url, start, end, timeout=timeout_s)
    return data


async def _read(system: Any, url: str, start: int, end: int) -> tuple[bytes, int]:
    bucket, key, _ = system.split_path(url)
    answer = await system._call_s3("get_object", Bucket=bucket, Key=key, Range=range_header(start, end))
    body, reply = answer["Body"], answer["ResponseMetadata"]
    # The encoding is a note of who stored the file, such as aws-chunked. The client decompresses nothing.
    headers = {name: value for name, value in reply["HTTPHeaders"].items() if name.lower() != "content-encoding"}
    try:
        length, size = announced_range(reply["HTTPStatusCode"], headers, start, end)
        return await bounded_body(body.iter_chunks(PIECE_BYTES), length), size
    finally:
        body.close()
