"""Tests the demonstrations' scores, baseline and report."""

import json
from pathlib import Path

import pytest

from minigptv2.demo.report import _html_cards, _some_of_each_task, write_report
from minigptv2.demo.scoring import Evaluation, baseline, score_all, table
from minigptv2.heldout.samples import load_heldout
from minigptv2.tasks import TASKS
from tests.conftest import TOY_TASKS, World


@pytest.mark.parametrize("task", TOY_TASKS)
def test_true_answers_score_one_and_every_task_has_its_headline(world: World, task: str) -> None:
    items = load_heldout(world.val / f"toy_{task}")
    scores = score_all(items, [one.answer for one in items])[task]
    assert scores["samples"] == len(items)
    assert scores[TASKS[task].headline] == 1.0


def test_the_baseline_gives_one_answer_for_each_task(world: World) -> None:
    items = [one for task in ("refer", "vqa") for one in load_heldout(world.val / f"toy_{task}")]
    scores = baseline(items)
    most_common = max(sum(a.answer == b.answer for b in items if b.turn.task == "vqa") for a in items)
    assert scores["vqa"]["accuracy"] == pytest.approx(most_common / 8)
    assert scores["refer"]["well_formed"] == 1.0
    text = table({"model": scores, "baseline": scores})
    assert "recall_50*" in text and "accuracy*" in text


def test_the_report_shows_a_card_for_each_task_with_an_image(world: World) -> None:
    items = [one for task in TOY_TASKS for one in load_heldout(world.val / f"toy_{task}", 2)]
    evaluation = Evaluation(items, [one.answer for one in items], {})
    page = _html_cards(_some_of_each_task(evaluation, 1))
    assert page.count("<img src='data:image/jpeg;base64,") == sum(TASKS[task].shape.image for task in TOY_TASKS)


def test_the_report_has_curves_scores_and_cards(world: World, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `demo`")
    stages = {name: tmp_path / name for name in ("stage1", "stage2")}
    for run in stages.values():
        run.mkdir()
        lines = [{"step": step, "task_loss": {"refer": 1 / step}, "mixture": {"toy_refer": 1.0}} for step in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = load_heldout(world.val / "toy_refer", 2)
    answers = [one.answer for one in items]
    evaluation = Evaluation(items, answers, score_all(items, answers))
    page, image = write_report(
        tmp_path, stages, {"model": evaluation.scores}, {"stage1": 1.0}, photographs=evaluation, scenes=evaluation
    )
    text = page.read_text()
    assert "<td>refer<td>recall_50<td>1.000" in text and text.count("class='card'") == 4
    assert image.stat().st_size > 0
