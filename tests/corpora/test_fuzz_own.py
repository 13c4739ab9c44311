"""A few of the fuzzer's cases, always the same ones; `make fuzz-own` runs them by the thousand."""

from __future__ import annotations

from pathlib import Path

from tests.corpora.fuzz_own import CHANGES, fuzz


def test_a_changed_entry_gives_the_same_sample_or_a_named_error(tmp_path: Path) -> None:
    found = fuzz(300, seed=2, folder=tmp_path)
    assert not found.wrong and found.kept > 100 and found.refused > 100
    assert len(found.by_change) == len(CHANGES)
