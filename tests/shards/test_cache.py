"""The node's shard cache: bounded, shared by processes, and nothing but a faster way to the same bytes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minigptv2.errors import ConfigError
from minigptv2.shards.cache import FOLDER, SIZE, ShardCache
from minigptv2.shards.reader import CorpusReader
from tests.conftest import World


def shards(folder: Path, count: int, size: int = 1000) -> list[Path]:
    folder.mkdir()
    made = [folder / f"s-{number}.tar" for number in range(count)]
    for number, file in enumerate(made):
        file.write_bytes(bytes([number]) * size)
    return made


def read(cache: ShardCache, file: Path) -> bytes:
    descriptor = cache.open(file, file.stat().st_size)
    try:
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


def copies(cache: ShardCache) -> list[str]:
    return sorted(file.name.split("-", 1)[1] for file in cache.folder.glob("*.tar"))


def test_the_least_recently_opened_copies_make_room(tmp_path: Path) -> None:
    files = shards(tmp_path / "far", 5)
    cache = ShardCache(tmp_path / "near", 3000)
    for number in (0, 1, 2, 0, 3, 4):
        assert read(cache, files[number]) == bytes([number]) * 1000
        assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 3000
    assert copies(cache) == ["s-0.tar", "s-3.tar", "s-4.tar"]


def test_a_copy_is_read_instead_of_the_shard_and_a_rebuilt_shard_is_copied_anew(tmp_path: Path) -> None:
    (file,) = shards(tmp_path / "far", 1)
    cache = ShardCache(tmp_path / "near", 5000)
    read(cache, file)
    (copy,) = cache.folder.glob("*.tar")
    copy.write_bytes(b"c" * 1000)
    assert read(cache, file) == b"c" * 1000
    file.write_bytes(b"n" * 1000)
    os.utime(file, ns=(1, 1))
    assert read(cache, file) == b"n" * 1000


def test_a_reader_keeps_a_shard_that_made_room(tmp_path: Path) -> None:
    files = shards(tmp_path / "far", 2)
    cache = ShardCache(tmp_path / "near", 1000)
    descriptor = cache.open(files[0], 1000)
    read(cache, files[1])
    assert copies(cache) == ["s-1.tar"]
    assert os.pread(descriptor, 4, 996) == bytes(4)
    os.close(descriptor)


def test_many_at_once_copy_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = shards(tmp_path / "far", 4, size=200_000)
    fetched: list[str] = []
    fetch = ShardCache._fetch

    def count(self: ShardCache, source: Path, copy: Path, num_bytes: int) -> int:
        fetched.append(source.name)
        return fetch(self, source, copy, num_bytes)

    monkeypatch.setattr(ShardCache, "_fetch", count)
    caches = [ShardCache(tmp_path / "near", 10_000_000) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda cache: [read(cache, file)[:1] for file in files], caches))
    assert results == [[bytes([number]) for number in range(4)]] * 8
    assert sorted(fetched) == [file.name for file in files]


def test_what_a_killed_process_left_half_copied_makes_room(tmp_path: Path) -> None:
    files = shards(tmp_path / "far", 2)
    cache = ShardCache(tmp_path / "near", 1500)
    read(cache, files[0])
    (copy,) = cache.folder.glob("*.tar")
    copy.rename(copy.with_name(copy.name + ".part"))
    assert read(cache, files[1]) == bytes([1]) * 1000
    assert list(cache.folder.glob("*.part")) == []


def test_a_shard_that_does_not_fit_is_read_where_it_lies_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = shards(tmp_path / "far", 2)
    cache = ShardCache(tmp_path / "near", 999)
    assert [read(cache, file)[:1] for file in files] == [b"\0", b"\1"]
    assert capsys.readouterr().err.count("warning: shard cache") == 1
    blocked = ShardCache(tmp_path / "far" / "s-0.tar" / "near", 5000)
    assert read(blocked, files[1])[:1] == b"\1"


def test_a_corpus_reads_the_same_through_the_cache(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CorpusReader(world.train / "toy_refer")
    expected = [(plain.record(n), plain.image(n)) for n in range(len(plain))]
    monkeypatch.setenv(FOLDER, str(tmp_path / "near"))
    monkeypatch.setenv(SIZE, "0.0001")  # 107 kB: a shard or two
    cached = CorpusReader(world.train / "toy_refer")
    assert [(cached.record(n), cached.image(n)) for n in range(len(cached))] == expected
    assert copies(ShardCache(tmp_path / "near", 1))


@pytest.mark.parametrize("size", ["", "0", "-1", "much"])
def test_a_folder_without_a_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=f"requires {SIZE}"):
        ShardCache.from_environment({FOLDER: "/scratch", SIZE: size})
    assert ShardCache.from_environment({SIZE: size}) is None
