"""Tests each reader of foreign files with a few changed files. `make fuzz-readers` reads thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzz.runner import READERS, fuzz

CASES = 12


@pytest.mark.parametrize("name", READERS)
def test_the_file_that_is_changed_is_valid(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    assert reader.read(reader.unchanged())


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    found = fuzz(name, range(CASES), seed=1, folder=tmp_path)
    assert found.wrong == []
    assert found.kept + found.refused == CASES and found.refused > 0
