"""Reads shards behind `http(s)://` and `s3://` in byte ranges, through `fsspec` (`pip install 'minigptv2[remote]'`).

The length of every read is checked, and failed reads are repeated with growing pauses. The reader checks samples
against the index. This module checks the arrays beside the tars against the manifest. An unreachable store raises
`StorageError`, which stops a run instead of dropping its samples. Other schemes are refused: fsspec supports some that
run programs.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from minigptv2.errors import ConfigError, DataError, StorageError
from minigptv2.files import write_atomically
from minigptv2.foreign_files import parse_json
from minigptv2.secrets import sends_secret
from minigptv2.shards import http_ranges, s3_ranges
from minigptv2.shards.manifest import INDEX_DTYPE, INDEX_FILE, MANIFEST_FILE, MAX_MANIFEST_BYTES, TABLE_FILE
from minigptv2.shards.turn_counts import TURNS_DTYPE, TURNS_FILE
from minigptv2.user_cache import user_cache_folder

Result = TypeVar("Result")

SCHEMES = ("http", "https", "s3")
ATTEMPTS = 6
FIRST_PAUSE_S = 0.5
"""Doubled after each attempt."""
TIMEOUT_S = 30
"""Per attempt. All attempts and pauses of one read take less time than the loader waits for a worker."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_PART_BYTES = 16 << 20
_MAX_TABLE_ROW = 10_048
_ARRAY_HEADER = 1 << 12
_MAX_ARRAY_BYTES = 4 << 30
"""Largest array beside the tars: an index of 268 million samples."""
_MAX_READS = 3
"""How often a file is read as a whole while its content is not the expected one."""


def is_remote(folder: Path | str) -> bool:
    """Whether `folder` is a URL. Raises `ConfigError` for an unsupported scheme."""
    scheme = _SCHEME.match(str(folder))
    if scheme is None or isinstance(folder, Path):
        return False
    if scheme[1] not in SCHEMES or not folder.startswith(f"{scheme[1]}://") or "::" in folder:
        raise ConfigError(f"'{public_url(folder)}' must be a folder or a URL with scheme {', '.join(SCHEMES)}")
    return True


def below(base: Path | str, name: str) -> Path | str:
    """The corpus folder `name` below `base`, or `name` itself if it is a URL or an absolute path."""
    if is_remote(name):
        return name
    if Path(name).is_absolute():
        return Path(name)
    return f"{str(base).rstrip('/')}/{name}" if is_remote(base) else Path(base) / name


def public_url(url: str) -> str:
    """The URL without user, password and query, as it may appear in a log."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url.split("?")[0]


class RemoteFiles:
    """Byte ranges of the files below a URL. Raises `ConfigError` if the URL would send a secret of the environment."""

    def __init__(self, folder: str) -> None:
        if sends_secret(folder):
            raise ConfigError(
                f"a {urlsplit(folder).scheme}:// URL of shards holds the value of a secret environment variable. "
                "Nothing was sent. Give credentials in the store's own settings, for example AWS_PROFILE"
            )
        self.folder = folder.rstrip("/")

    def read(self, file: str, size: int, offset: int, count: int) -> bytes:
        """`count` bytes of `file`, which has `size` bytes, from `offset`.

        Raises `DataError` if the file does not exist, and `StorageError` if the store is unreachable.
        """
        return self._read_range(file, offset, offset + count, size)

    def read_all(self, file: str, limit: int) -> bytes:
        """A whole file, read in parts. Raises as `read` does, and `DataError` for more than `limit` bytes."""
        part, size = self._read_part(file, 0, min(_PART_BYTES, limit + 1))
        if size > limit:
            raise DataError(f"{public_url(self.folder)}/{file} has {size:,} bytes; at most {limit:,} are read")
        starts = range(len(part), size, _PART_BYTES)
        return part + b"".join(self._read_range(file, one, min(size, one + _PART_BYTES), size) for one in starts)

    def _read_range(self, file: str, start: int, end: int, size: int) -> bytes:
        data, found = self._read_part(file, start, end)
        if len(data) != end - start:
            raise DataError(f"{public_url(self.folder)}/{file}: has {found} bytes, expected {size}")
        return data

    def _read_part(self, file: str, start: int, end: int) -> tuple[bytes, int]:
        """The bytes from `start` to `end` or to the end of the file, and the size of the file."""

        def attempt(system: Any, url: str) -> tuple[bytes, int]:
            ranges = s3_ranges if urlsplit(url).scheme == "s3" else http_ranges
            return ranges.read_range(system, url, start, end, TIMEOUT_S)

        return self._retry(file, attempt)

    def _retry(self, file: str, attempt: Callable[[Any, str], Result]) -> Result:
        url = f"{self.folder}/{file}"
        pause, problem = FIRST_PAUSE_S, ""
        system = _file_system(url)
        errors = _transient_errors()
        for number in range(ATTEMPTS):
            if number:
                time.sleep(pause)
                pause *= 2
            try:
                return attempt(system, url)
            except FileNotFoundError as error:
                raise DataError(f"{public_url(url)}: not found") from error
            except errors as error:
                problem = f"{type(error).__name__}: {str(error).replace(url, public_url(url))}"
        raise StorageError(f"{public_url(url)}: download failed after {ATTEMPTS} attempts, last error: {problem}")


def mirror(folder: str) -> Path:
    """A local folder with the corpus's manifest, and with the arrays that it lists, checked against its hashes.

    Raises `DataError` if they are not what the manifest lists, and `StorageError` if the store is unreachable.
    """
    files = RemoteFiles(folder)
    manifest, hashes, limits = _manifest(files)
    local = _cache_folder() / hashlib.sha256(public_url(folder).encode() + manifest).hexdigest()[:24]
    if (local / MANIFEST_FILE).is_file():
        return local
    local.mkdir(parents=True, exist_ok=True)
    for name, expected in hashes.items():
        write_atomically(local / name, _hashed(files, name, expected, limits[name]))
    write_atomically(local / MANIFEST_FILE, manifest)
    return local


def _cache_folder() -> Path:
    """Where manifests are kept."""
    return user_cache_folder("manifests")


def _manifest(files: RemoteFiles) -> tuple[bytes, dict[str, str], dict[str, int]]:
    """The manifest's bytes, and hash and largest size of the arrays that it lists. Read again if it is not valid."""
    problem = ""
    for _ in range(_MAX_READS):
        data = files.read_all(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        try:
            document = parse_json(data)
            hashes = {TABLE_FILE: document["shards_sha256"], INDEX_FILE: document["index_sha256"]}
            if turn_counts := document.get("turn_counts_sha256"):
                hashes[TURNS_FILE] = turn_counts
            return data, hashes, _limits(document["num_shards"], document["samples"])
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise DataError(f"{public_url(files.folder)}/{MANIFEST_FILE}: not a valid manifest: {problem}")


def _limits(num_shards: int, samples: int) -> dict[str, int]:
    """The largest size of each array of a corpus. Raises `TypeError` unless both are numbers."""
    rows = {TABLE_FILE: num_shards * _MAX_TABLE_ROW, INDEX_FILE: samples * INDEX_DTYPE.itemsize}
    rows[TURNS_FILE] = samples * TURNS_DTYPE.itemsize
    return {name: min(_ARRAY_HEADER + int(size), _MAX_ARRAY_BYTES) for name, size in rows.items()}


def _hashed(files: RemoteFiles, name: str, sha256: str, limit: int) -> bytes:
    """The whole file, read again if a server reported a smaller size than it has."""
    for _ in range(_MAX_READS):
        data = files.read_all(name, limit)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise DataError(f"{public_url(files.folder)}/{name}: does not match the hash in its manifest")


def _file_system(url: str) -> Any:
    scheme = urlsplit(url).scheme
    for package in ("aiohttp", "s3fs") if scheme == "s3" else ("aiohttp",):
        if find_spec(package) is None:
            raise ConfigError(f"{public_url(url)}: {package} is not installed: `pip install 'minigptv2[remote]'`")
    import aiohttp
    import fsspec

    if scheme == "s3":
        return fsspec.filesystem("s3")
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout, "auto_decompress": False})


def _transient_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    errors = (OSError, EOFError, TimeoutError, aiohttp.ClientError)
    if find_spec("botocore") is None:
        return errors
    from botocore.exceptions import BotoCoreError, ClientError

    return (*errors, BotoCoreError, ClientError)
