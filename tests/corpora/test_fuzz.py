"""A few of the fuzzers' cases, always the same ones; `make fuzz-own` runs them by the thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora.fuzz.runner import FORMATS, fuzz


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_gives_the_same_samples_or_a_named_error(name: str, tmp_path: Path) -> None:
    found = fuzz(name, range(100), seed=2, folder=tmp_path)
    assert not found.wrong and found.kept > 10 and found.refused > 10
