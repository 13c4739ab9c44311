"""Tests that a trainable tensor that does not change, or a frozen one that does on any rank, stops the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.net import ZERO3, batch, make_trainer, mine
from tests.ranks import run_ranks

STAGES: list[tuple[dict[str, Any], int]] = [(ZERO3, 2), ({"stage": 2}, 2), ({"stage": 0}, 1)]


def train_watched(folder: str, zero: dict[str, Any]) -> Any:
    """Return the check's result for a correct run, one with a zero gradient, and one with a changed frozen weight."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.movement import Movement
    from minigptv2.errors import StepError

    said = {}
    for fault in ("none", "stuck", "loose"):
        trainer = make_trainer(Path(folder), zero)
        movement = Movement(trainer, 2)
        if fault == "stuck":
            trainer.parameters["first.bias"].register_hook(lambda gradient: gradient * 0)
        checked = []
        try:
            for step in range(3):
                if fault == "loose" and step == 1 and distributed.rank() == distributed.world_size() - 1:
                    frozen = trainer.parameters["frozen.weight"]
                    getattr(frozen, "ds_tensor", frozen).data.view(-1)[0] += 1
                trainer.train_step(mine([batch(step, number) for number in range(4)]))
                checked.append(movement.check_when_due(trainer, last=False))
            said[fault] = str(checked)
        except StepError as error:
            said[fault] = str(error)
    return said


@pytest.mark.parametrize(("zero", "ranks"), STAGES, ids=["zero3", "zero2", "zero0"])
def test_a_tensor_that_changes_or_stays_wrongly_is_named(tmp_path: Path, zero: dict[str, Any], ranks: int) -> None:
    results = run_ranks("tests.engine.test_movement:train_watched", ranks, tmp_path, folder=str(tmp_path), zero=zero)
    for said in results:
        assert said["none"] == "[False, True, False]", "checked once, after two updates"
        assert "step 2: 1 trainable tensors have not changed, first first.bias." in said["stuck"]
        assert "step 2: 1 frozen tensors have changed, first frozen.weight." in said["loose"]


def resume_at_the_last_step(folder: str) -> str:
    """Start for a single step that is skipped: no tensor has changed since the start, and none had to."""
    from minigptv2.engine.movement import Movement

    trainer = make_trainer(Path(folder), {"stage": 0})
    for step in range(3):
        trainer.train_step(mine([batch(step, number) for number in range(4)]))
    movement = Movement(trainer, 2)
    trainer.train_step(mine([batch(3, number, labelled=False) for number in range(4)]))
    return str(movement.check_when_due(trainer, last=True))


def test_a_start_whose_only_step_was_skipped_has_nothing_to_check(tmp_path: Path) -> None:
    said = run_ranks("tests.engine.test_movement:resume_at_the_last_step", 1, tmp_path, folder=str(tmp_path))
    assert said == ["False"]
