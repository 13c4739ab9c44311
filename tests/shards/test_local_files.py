"""Files of shards: few stay open, and a file system that is away is not taken for a bad sample."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minigptv2.errors import DataError, StorageError
from minigptv2.shards import local_files
from minigptv2.shards.local_files import LocalFiles, ScatteredFiles


def shards(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"c-{number}.tar" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    return names


def test_few_files_stay_open_whatever_the_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_MAX_OPEN_SHARDS", 5)
    corpora = [LocalFiles(tmp_path / str(number)) for number in range(3)]
    before = len(os.listdir("/proc/self/fd")) - len(local_files._open_files)
    for files in corpora:
        for name in shards(files.folder, 4):
            assert files.read(name, len(name), 2, 3) == name.encode()[2:5]
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    del corpora, files
    assert len(os.listdir("/proc/self/fd")) <= before, "a corpus that is gone closes its files"


@pytest.mark.parametrize(
    ("number", "fails", "error"),
    [
        (errno.ESTALE, 1, None),
        (errno.EIO, 9, StorageError),
        (errno.EMFILE, 9, StorageError),
        (errno.EACCES, 9, DataError),
    ],
)
def test_a_store_that_is_away_is_no_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: int, error: type[Exception] | None
) -> None:
    (name,) = shards(tmp_path / "c", 1)
    real, times = os.pread, [0]

    def pread(*args: int) -> bytes:
        times[0] += 1
        if times[0] <= fails:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(local_files, "_PAUSES_S", (0.0, 0.0))
    files = LocalFiles(tmp_path / "c")
    if error is None:
        assert files.read(name, len(name), 0, 3) == b"c-0"
    else:
        with pytest.raises(error, match=r"c-0\.tar"):
            files.read(name, len(name), 0, 3)


def test_scattered_reads_keep_no_file_open_and_leave_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads share the object. A node's cache would copy each shard of which one sample is measured."""
    monkeypatch.setenv("MINIGPTV2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIGPTV2_CACHE_GIB", "1")
    names = shards(tmp_path / "c", 40)
    files = ScatteredFiles(tmp_path / "c")
    before = set(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: files.read(name, len(name), 0, len(name)), names * 5))
    assert found == [name.encode() for name in names * 5]
    assert len(os.listdir("/proc/self/fd")) <= len(before) and not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match="7 bytes, the manifest says 99"):
        files.read(names[0], 99, 0, 3)
    with pytest.raises(DataError, match="cannot be read"):
        files.read("missing.tar", 9, 0, 3)
