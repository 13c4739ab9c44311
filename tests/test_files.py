"""Files: of other nodes, which come late, and such as are hashed while they are written."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from pathlib import Path

import pytest

from minigptv2.convert.llama import copy_small_files
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import HashedFile, new_file, own_folder, remove_or_report, wait_until_seen
from minigptv2.shards.cache import ShardCache
from tests.conftest import REPOSITORY


def test_a_file_that_comes_late_and_in_parts_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "export" / "weights"
    threading.Timer(0.1, file.parent.mkdir).start()
    threading.Timer(0.2, file.write_bytes, [b"1234"]).start()
    threading.Timer(0.5, file.write_bytes, [b"12345678"]).start()
    wait_until_seen(file, 8, timeout_s=20)
    assert file.read_bytes() == b"12345678"


def test_a_file_that_never_comes_is_an_error_with_the_hosts_name(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"does not see .*/weights of 8 bytes"):
        wait_until_seen(tmp_path / "weights", 8, timeout_s=0.1)


def _is_cached(file: Path) -> bool:
    """Whether the file's first page lies in memory. Skips where the file system cannot tell."""
    with open(file, "rb") as stream:
        try:
            return os.preadv(stream.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError as error:
            pytest.skip(f"the file system does not say what is cached: {error}")


@pytest.mark.parametrize("evict_page_cache", [False, True])
def test_small_and_large_writes_are_hashed_as_they_lie(tmp_path: Path, evict_page_cache: bool) -> None:
    parts = [b"a", b"bc" * 1000, os.urandom(HashedFile.PIECE + 5), b"", b"d" * 7]
    hashed = HashedFile(tmp_path / "file", evict_page_cache=evict_page_cache)
    with io.BufferedWriter(hashed, 1 << 16) as stream:
        for part in parts:
            stream.write(part)
        stream.flush()
        told = hashed.finish()
    content = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == content
    assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_what_is_seldom_read_takes_no_place_in_the_page_cache(tmp_path: Path) -> None:
    for name, evict_page_cache in (("kept", False), ("seldom", True)):
        hashed = HashedFile(tmp_path / name, evict_page_cache=evict_page_cache)
        hashed.write(bytes(3 * HashedFile.PIECE))
        hashed.finish()
    if not _is_cached(tmp_path / "kept"):
        pytest.skip("the file system keeps nothing in memory")
    assert not _is_cached(tmp_path / "seldom")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "file"])
def test_a_temporary_file_is_not_opened_through_a_link(kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"old")
    place = tmp_path / "place"
    if kind == "file":
        place.write_bytes(b"x" * 9)
    else:
        place.symlink_to(precious if kind == "link" else tmp_path / "nothing")
    with new_file(place, 0o600) as stream:
        stream.write(b"new")
    assert place.read_bytes() == b"new" and not place.is_symlink() and place.stat().st_mode & 0o777 == 0o600
    assert precious.read_bytes() == b"old" and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", ["link", "file", "open to all", "open to the group"])
def test_a_folder_that_others_could_change_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to(tmp_path / "theirs")
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777 if kind == "open to all" else 0o770)
    with pytest.raises(ConfigError, match="folder of"):
        own_folder(place)
    with pytest.raises(ConfigError, match="folder of"):
        ShardCache(place, 1000).open(Path(__file__), 10)
    own_folder(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["copy", "part", "lock"])
def test_the_cache_follows_no_link(name: str, tmp_path: Path) -> None:
    source, precious = tmp_path / "s.tar", tmp_path / "precious"
    source.write_bytes(b"s" * 10)
    precious.write_bytes(b"p" * 10)
    cache = ShardCache(tmp_path / "cache", 1000)
    own_folder(cache.folder)
    copy = cache._copy_of(source, 10)
    place = copy if name == "copy" else copy.with_name(f"{copy.name}.{name}")
    place.symlink_to(precious)
    descriptor = cache.open(source, 10)
    assert os.pread(descriptor, 10, 0) == b"s" * 10
    os.close(descriptor)
    assert precious.read_bytes() == b"p" * 10


def test_what_cannot_be_removed_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> None:
        raise PermissionError(1, "not permitted", str(path))

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(shutil, "rmtree", fail)
    remove_or_report(tmp_path / "a")
    assert f"{tmp_path / 'a'} could not be removed: not permitted" in capsys.readouterr().err


def test_nothing_ignores_errors_or_replaces_bytes() -> None:
    for file in (REPOSITORY / "src").rglob("*.py"):
        text = file.read_text()
        assert "ignore_errors=True" not in text and 'errors="replace"' not in text, file


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer.model"])
def test_small_files_are_not_copied_through_a_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine")
    for folder in ("theirs", "copy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "theirs" / name).symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match="link out of its folder"):
        copy_small_files(tmp_path / "theirs", tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
