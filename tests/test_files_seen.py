"""Files of other nodes, which come late."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from minigptv2.files import wait_until_seen


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
