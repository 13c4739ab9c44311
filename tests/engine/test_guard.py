"""Tests that the step guard keeps bad steps from the weights on any ZeRO stage, as if they had not been trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.batch import MicroBatch
from minigptv2.engine.config import GuardConfig
from minigptv2.engine.guard import GuardState, StepGuard
from minigptv2.errors import StepError
from tests.engine.net import ZERO3, batch, make_trainer, mine, snapshot
from tests.ranks import run_ranks

NAN, INF = math.nan, math.inf
BAD_STEPS: dict[int, dict[str, Any]] = {
    0: {"spoil": (NAN, 1.0)},  # the first step, when the optimizer has no state yet
    3: {"spoil": (INF, 1.0)},
    5: {"spoil": (1.0, NAN)},  # finite loss, but a gradient that is not finite
    6: {"labelled": False},
}
STEPS = 9


def batches_of(step: int, sound: bool = False) -> list[MicroBatch]:
    """Return four micro-batches. In a bad step the second one (rank 1 of two) is not finite, or none has a label."""
    bad = {} if sound else BAD_STEPS.get(step, {})
    everywhere = "labelled" in bad
    return [batch(step, number, **(bad if everywhere or number == 1 else {})) for number in range(4)]


def train_past_bad_steps(folder: str, zero: dict[str, Any], extra: dict[str, Any] | None = None) -> Any:
    """Train through the bad steps, then again without them. Returns the results of both on this rank."""
    from minigptv2.cluster import distributed

    trainer = make_trainer(Path(folder), zero, extra=extra)
    reports, untouched, before = [], [], snapshot(trainer)
    for step in range(STEPS):
        reports.append(trainer.train_step(mine(batches_of(step))))
        after = snapshot(trainer)
        untouched.append(all(torch.equal(before[name], after[name]) for name in before))
        before = after
    again = make_trainer(Path(folder), zero, extra=extra)
    good = [again.train_step(mine(batches_of(step))) for step in range(STEPS) if step not in BAD_STEPS]
    end = snapshot(again)
    return {
        "skipped": [report.skipped for report in reports],
        "suspects": [report.suspects for report in reports],
        "rates": [report.learning_rate for report in reports if not report.skipped],
        "good_rates": [report.learning_rate for report in good],
        "losses": [report.loss for report in reports if not report.skipped],
        "good_losses": [report.loss for report in good],
        "counted": [trainer.step, trainer.guard.skipped, again.guard.skipped],
        "untouched": untouched,
        "equal_end": all(torch.equal(before[name], end[name]) for name in end),
        "rank": distributed.rank(),
    }


@pytest.mark.parametrize(
    ("zero", "extra", "ranks"),
    [(ZERO3, {}, 2), ({"stage": 2}, {"bf16": {"enabled": True}}, 2), ({"stage": 0}, {}, 1)],
    ids=["zero3x2", "zero2-bf16-x2", "zero0x1"],
)
def test_a_bad_step_changes_nothing_and_is_counted(
    tmp_path: Path, zero: dict[str, Any], extra: dict[str, Any], ranks: int
) -> None:
    arguments = {"folder": str(tmp_path), "zero": zero, "extra": extra}
    results = run_ranks("tests.engine.test_guard:train_past_bad_steps", ranks, tmp_path, **arguments)
    for result in results:
        assert [step for step, reason in enumerate(result["skipped"]) if reason] == list(BAD_STEPS)
        assert result["counted"] == [STEPS, len(BAD_STEPS), 0]
        assert result["rates"] == result["good_rates"] and result["losses"] == result["good_losses"]
        assert result["skipped"] == results[0]["skipped"], "all ranks decide equally"
    assert [step for step, same in enumerate(results[0]["untouched"]) if same] == list(BAD_STEPS)
    assert results[0]["equal_end"], "as if the bad steps had not been trained"
    assert "loss is nan" in results[0]["skipped"][0] and "gradient norm is nan" in results[0]["skipped"][5]
    culprit = results[-1]["suspects"]
    assert culprit[0] and culprit[3] and not culprit[5]
    assert ranks == 1 or not any(results[0]["suspects"]), "only the rank with the bad loss is blamed"


def test_a_spike_is_skipped_and_a_slow_increase_is_not() -> None:
    guard = StepGuard(GuardConfig(spike_sigma=6, spike_window=16))
    for step in range(16):
        assert guard.skip_reason(1.0 + 0.1 * (step % 2), 1.0) is None
        guard.record_applied(1.0 + 0.1 * (step % 2), 1.0)
    assert "the loss is 9, 6 sigma above" in str(guard.skip_reason(9.0, 1.0))
    assert "the gradient norm is 9" in str(guard.skip_reason(1.0, 9.0))
    for step in range(200):
        loss = 1.1 + 0.01 * step
        assert guard.skip_reason(loss, 1.0) is None
        guard.record_applied(loss, 1.0)
    resumed = StepGuard(GuardConfig(spike_sigma=6, spike_window=16))
    resumed.load_state(GuardState(**json.loads(json.dumps(asdict(guard.state())))))
    assert resumed.skip_reason(9.0, 1.0) == guard.skip_reason(9.0, 1.0)


def test_too_many_in_a_row_stop_the_run() -> None:
    guard = StepGuard(GuardConfig(max_skipped_in_a_row=2))
    guard.record_skipped()
    guard.stop_if_too_many(0, "x")
    guard.record_applied(1.0, 1.0)
    guard.record_skipped()
    guard.stop_if_too_many(2, "x")
    guard.record_skipped()
    with pytest.raises(StepError, match="2 steps in a row were skipped, last step 3: x"):
        guard.stop_if_too_many(3, "x")
    assert guard.skipped == 3
