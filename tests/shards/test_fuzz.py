"""A few of the fuzzers' cases, always the same ones; `make fuzz-data` runs them by the thousand."""

from pathlib import Path

from tests.shards.fuzz import MEMORY_LIMIT_MB, TAR_DAMAGE, fuzz_images, fuzz_tars


def test_no_damaged_tar_loses_or_mixes_a_sample_silently(tmp_path: Path) -> None:
    verdict = fuzz_tars(250, seed=2, folder=tmp_path)
    assert verdict.silent == [] and verdict.cases == 250
    assert verdict.kept > 100 and verdict.lost > 100 and len(verdict.by_damage) == len(TAR_DAMAGE)


def test_damaged_images_and_bombs_neither_crash_nor_fill_the_memory() -> None:
    found = fuzz_images(150, seed=2, bombs=3)
    assert "crash" not in found, found
    assert found["outcomes"]["refused by name"] > 50 and found["outcomes"]["decoded"] > 20
    assert len(found["grown_mb"]) == 4 and max(found["grown_mb"].values()) <= MEMORY_LIMIT_MB, found["grown_mb"]
