"""The shipped stage configs state the balance and fill of their packs. Both are measured here on fixed lengths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.data.packing import STAGE_RANKS, STAGES, measure_stage

from minigptv2.run_config import check_run_config, load_run_config

GOOD = 0.98
SAMPLES = 30_000
_STATED = re.compile(r"^# (\d+) ranks(?: with (\S+(?: \S+)*))?: balance ([\d.]+), fill ([\d.]+)(, because .+)?$", re.M)


def stated(file: Path) -> list[tuple[int, list[str], float, float, str]]:
    """What a config's comment states: ranks, overrides, balance, fill and the reason of a low balance."""
    found = _STATED.findall(file.read_text())
    return [(int(n), words.split(), float(balance), float(fill), why) for n, words, balance, fill, why in found]


@pytest.mark.parametrize("file", STAGES, ids=lambda file: file.stem)
def test_a_stage_config_has_the_balance_and_fill_that_it_states(file: Path) -> None:
    lines = stated(file)
    assert {ranks for ranks, words, *_ in lines if not words} == set(STAGE_RANKS)
    for ranks, words, balance, fill, _ in lines:
        config = load_run_config(file, words).value
        measured = measure_stage(config, ranks, samples=SAMPLES)
        assert measured["balance"] == pytest.approx(balance, abs=0.006)
        assert measured["fill"] == pytest.approx(fill, abs=0.01)
        assert measured["images"] <= 1


@pytest.mark.parametrize("file", STAGES, ids=lambda file: file.stem)
def test_a_balance_below_the_goal_has_a_reason(file: Path) -> None:
    for ranks, words, balance, _, why in stated(file):
        assert balance >= GOOD or why or words, f"{file.name} on {ranks} ranks"


@pytest.mark.parametrize("ranks", STAGE_RANKS)
@pytest.mark.parametrize("file", STAGES, ids=lambda file: file.stem)
def test_a_step_needs_no_more_packs_than_its_micro_batch_says(file: Path, ranks: int) -> None:
    config = load_run_config(file).value
    check_run_config(config, ranks)
    planned = config.train.global_batch_size // (config.train.micro_batch_size * ranks)
    assert measure_stage(config, ranks, samples=SAMPLES)["micro-batches"] == pytest.approx(planned, rel=0.002)


def test_the_paper_batch_is_kept() -> None:
    batches = {file.stem: load_run_config(file).value.train.global_batch_size for file in STAGES}
    assert batches == {"stage1_pretrain": 96, "stage2_multitask": 64, "stage3_instruct": 24}
