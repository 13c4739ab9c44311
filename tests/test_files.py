"""Files: of other nodes, which come late, and such as are hashed while they are written."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from pathlib import Path

import pytest

from minigptv2.files import HashedFile, wait_until_seen


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
