"""Shards behind `http(s)://` and `s3://`, by byte ranges through `fsspec` (`pip install 'minigptv2[remote]'`).

Every read is checked for its length and tried again with growing pauses; samples are checked against the index by the
reader, table and index against the manifest here. A store that stays away raises `StorageError`, which stops a run
instead of losing its samples. Other schemes are refused: fsspec and webdataset know some that run programs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
import weakref
from collections import OrderedDict
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minigptv2.errors import ConfigError, DataError, StorageError
from minigptv2.files import write_atomically
from minigptv2.shards.cache import ShardCache
from minigptv2.shards.manifest import INDEX_FILE, MANIFEST_FILE, TABLE_FILE

SCHEMES = ("http", "https", "s3")
TRIES = 6
FIRST_PAUSE_S = 0.5
"""Doubled after each try."""
TIMEOUT_S = 30
"""Of one try. All tries and pauses of a read together are shorter than the loader waits for a worker."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_PART_BYTES = 16 << 20
_READS = 3
"""How often a whole file is read whose content is not what it should be."""


def is_remote(folder: Path | str) -> bool:
    """Whether `folder` is a URL. Raises `ConfigError` for a scheme that is not read."""
    scheme = _SCHEME.match(str(folder))
    if scheme is None or isinstance(folder, Path):
        return False
    if scheme[1] not in SCHEMES or not folder.startswith(f"{scheme[1]}://") or "::" in folder:
        raise ConfigError(f"'{public_url(folder)}' is neither a folder nor a URL of {', '.join(SCHEMES)}")
    return True


def below(base: Path | str, name: str) -> Path | str:
    """The corpus folder `name` below `base`; `name` itself where it is a URL or an absolute path."""
    if is_remote(name):
        return name
    return f"{str(base).rstrip('/')}/{name}" if is_remote(base) else Path(base) / name


def public_url(url: str) -> str:
    """The URL without user, password and query: what may stand in a log."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url.split("?")[0]


class RemoteFiles:
    """Byte ranges of the files below a URL."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")

    def read(self, file: str, size: int, offset: int, count: int) -> bytes:
        """`count` bytes of `file` from `offset`. Raises `DataError` where it is not there, `StorageError` as above."""
        return self._insist(file, offset, offset + count, size)

    def read_all(self, file: str) -> bytes:
        """A whole file, in parts."""
        size = self._insist_on_size(file)
        starts = range(0, size, _PART_BYTES)
        return b"".join(self._insist(file, start, min(size, start + _PART_BYTES), size) for start in starts)

    def _insist(self, file: str, start: int, end: int, size: int) -> bytes:
        def attempt(system: Any, url: str) -> bytes:
            data = system.cat_file(url, start=start, end=end)
            if len(data) == size and (start, end) != (0, size):  # a server that does not know ranges sends all
                data = data[start:end]
            if len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            return data

        return self._try(file, attempt)

    def _insist_on_size(self, file: str) -> int:
        def attempt(system: Any, url: str) -> int:
            size = system.info(url).get("size")
            if size is None:
                raise OSError("the server does not tell its size")
            return int(size)

        return self._try(file, attempt)

    def _try(self, file: str, attempt: Any) -> Any:
        url = f"{self.folder}/{file}"
        pause, problem = FIRST_PAUSE_S, ""
        system = _file_system(url)
        errors = _transient_errors()
        for number in range(TRIES):
            if number:
                time.sleep(pause)
                pause *= 2
            try:
                return attempt(system, url)
            except FileNotFoundError as error:
                raise DataError(f"{public_url(url)}: not found") from error
            except errors as error:
                problem = f"{type(error).__name__}: {str(error).replace(url, public_url(url))}"
        raise StorageError(f"{public_url(url)}: not to be had in {TRIES} tries, last {problem}")


def mirror(folder: str) -> Path:
    """A folder on this machine with the corpus's manifest, and table and index held against its hashes."""
    files = RemoteFiles(folder)
    manifest, hashes = _manifest(files)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigptv2" / "manifests"
    local = root / hashlib.sha256(public_url(folder).encode() + manifest).hexdigest()[:24]
    if (local / MANIFEST_FILE).is_file():
        return local
    local.mkdir(parents=True, exist_ok=True)
    for name, expected in hashes.items():
        write_atomically(local / name, _hashed(files, name, expected))
    write_atomically(local / MANIFEST_FILE, manifest)
    return local


def _manifest(files: RemoteFiles) -> tuple[bytes, dict[str, str]]:
    """The manifest's bytes, and the hashes of table and index that it gives; read again where it is no JSON."""
    problem = ""
    for _ in range(_READS):
        data = files.read_all(MANIFEST_FILE)
        try:
            document = json.loads(data)
            return data, {TABLE_FILE: document["shards_sha256"], INDEX_FILE: document["index_sha256"]}
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise DataError(f"{public_url(files.folder)}/{MANIFEST_FILE}: not a manifest: {problem}")


def _hashed(files: RemoteFiles, name: str, sha256: str) -> bytes:
    """The whole file, read again where a server told it shorter than it is."""
    for _ in range(_READS):
        data = files.read_all(name)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise DataError(f"{public_url(files.folder)}/{name}: not the file that its manifest was written with")


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
    return fsspec.filesystem(scheme, client_kwargs={"timeout": timeout})


def _transient_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (OSError, EOFError, TimeoutError, aiohttp.ClientError)


_MAX_OPEN_SHARDS = 256
"""Of a process, whatever its corpora: the usual limit of open files is 1,024."""
_OF_THE_STORE = {
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
}
"""Errors that are not the sample's: a server or disk that is away, this process out of something."""
_PAUSES_S = (0.5, 2.0, 8.0)
_open_files: OrderedDict[tuple[int, str], int] = OrderedDict()
"""Descriptors by number of the `ShardFiles` and file, least recently used first."""
_numbers = count()


class ShardFiles:
    """Byte ranges of the files below one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._cache = ShardCache.from_environment(os.environ)
        self._number = next(_numbers)
        weakref.finalize(self, _close_files_of, self._number)

    def read(self, file: str, size: int, offset: int, length: int) -> bytes:
        """`length` bytes of `file` from `offset`. Raises `DataError` if it is not there or not `size` bytes long, and
        `StorageError` where the file system still fails after a few tries: that loses no sample, it ends the run."""
        for pause in (*_PAUSES_S, None):
            try:
                data = os.pread(self._descriptor(file, size), length, offset)
                break
            except OSError as error:
                if error.errno not in _OF_THE_STORE:
                    raise DataError(f"{self.folder / file}: cannot be read: {error}") from error
                if pause is None:
                    raise StorageError(f"{self.folder / file}: {error}, in {len(_PAUSES_S) + 1} tries") from error
                self._forget(file)
                time.sleep(pause)
        if len(data) < length:
            raise DataError(f"{self.folder / file}: ends {length - len(data)} bytes early")
        return data

    def _descriptor(self, file: str, size: int) -> int:
        known = self._number, file
        if known in _open_files:
            _open_files.move_to_end(known)
            return _open_files[known]
        source = self.folder / file
        descriptor = os.open(source, os.O_RDONLY) if self._cache is None else self._cache.open(source, size)
        found = os.fstat(descriptor).st_size
        if found != size:
            os.close(descriptor)
            raise DataError(f"{self.folder / file}: {found} bytes, the manifest says {size}; copy or build it again")
        _open_files[known] = descriptor
        while len(_open_files) > _MAX_OPEN_SHARDS:
            os.close(_open_files.popitem(last=False)[1])
        return descriptor

    def _forget(self, file: str) -> None:
        """Close it, so that the next read opens it anew: a stale handle stays stale."""
        descriptor = _open_files.pop((self._number, file), None)
        if descriptor is not None:
            os.close(descriptor)


def _close_files_of(number: int) -> None:
    for known in [known for known in _open_files if known[0] == number]:
        os.close(_open_files.pop(known))


def files_of(folder: Path | str) -> ShardFiles | RemoteFiles:
    """The files of a corpus, wherever it lies."""
    return RemoteFiles(str(folder)) if is_remote(folder) else ShardFiles(folder)


def local_copy(folder: Path | str) -> Path:
    """The folder on this machine with the corpus's manifest, table and index."""
    return mirror(str(folder)) if is_remote(folder) else Path(folder)
