"""R18: what a resumed run may change. Every key of a run's config is classified, and each class does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.run_config import MAY_CHANGE, MUST_EQUAL, SAME_CONTENT, check_resume, load_run_config, rule_for
from tests.conftest import REPOSITORY

FLAT = load_run_config(REPOSITORY / "launch" / "configs" / "stage1_pretrain.yaml").flat
WHERE = Path("runs/x/checkpoints/step-00000001")


def changed(value: object) -> object:
    return [*value, "x"] if isinstance(value, list) else f"{value}x" if isinstance(value, str) else not value


@pytest.mark.parametrize("key", sorted(FLAT))
def test_every_key_is_in_one_table_and_treated_so(key: str) -> None:
    tables = [table for table in (MUST_EQUAL, SAME_CONTENT, MAY_CHANGE) if rule_for(key) is table]
    assert len(tables) == 1
    now = FLAT | {key: changed(FLAT[key])}
    if tables[0] is MUST_EQUAL:
        with pytest.raises(CheckpointError) as caught:
            check_resume(FLAT, now, WHERE)
        assert f"{key} was {FLAT[key]!r} and is now {now[key]!r}" in str(caught.value)
    else:
        assert check_resume(FLAT, now, WHERE) == [f"changed on resume: {key} was {FLAT[key]!r}, is now {now[key]!r}"]


def test_an_unclassified_key_is_an_error_that_says_where_to_add_it() -> None:
    with pytest.raises(ConfigError, match="run_config.py"):
        rule_for("train.nobody_thought_of_it")
    assert check_resume(FLAT, FLAT, WHERE) == []
