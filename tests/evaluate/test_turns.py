"""Figures by hand."""

from pathlib import Path

import pytest

from minigptv2.boxes import Box, match_boxes
from minigptv2.demo.scoring import baseline, score_all, table
from minigptv2.evaluate.metrics.turns import headline, score, token_f1
from minigptv2.heldout.samples import HeldOut, load_heldout
from minigptv2.record import Region, Turn
from minigptv2.tasks import TASKS
from tests.conftest import World

BOX = Box(10, 10, 50, 50)


def item(turn: Turn) -> HeldOut:
    return HeldOut(turn, None, 100, 100, "question", "answer", "test", 0)


def region(*boxes: Box, phrase: str = "a dog", span: tuple[int, int] | None = None) -> Region:
    return Region(boxes, (phrase,), span)


def test_refer_counts_boxes_that_overlap_by_half() -> None:
    asked = item(Turn("refer", regions=(region(BOX),)))
    assert score(asked, "{<10><10><50><50>}") == {"recall_50": 1.0, "mean_iou": 1.0, "well_formed": 1.0}
    half = score(asked, "{<10><10><50><29>}")
    assert half["mean_iou"] == pytest.approx(19 / 40) and half["recall_50"] == 0.0
    assert score(asked, "a dog") == {"recall_50": 0.0, "mean_iou": 0.0, "well_formed": 0.0}


def test_vqa_admits_every_accepted_answer() -> None:
    asked = item(Turn("vqa", "what?", ("red", "dark red")))
    assert score(asked, "Dark  red.") == {"accuracy": 1.0}
    assert score(asked, "blue") == {"accuracy": 0.0}


def test_detection_wants_each_box_once() -> None:
    other = Box(60, 60, 90, 90)
    asked = item(Turn("detection", regions=(region(BOX, other),)))
    both = "<p>a dog</p> {<10><10><50><50>}<delim>{<60><60><90><90>}"
    assert score(asked, both)["box_f1_50"] == 1.0
    twice = "<p>a dog</p> {<10><10><50><50>}<delim>{<10><10><50><50>}"
    assert score(asked, twice)["box_f1_50"] == 0.5
    assert match_boxes((BOX, BOX), (BOX, other)) == [1.0, 0.0]


def test_grounding_wants_phrase_and_box() -> None:
    asked = item(Turn("grounding", answers=("a dog runs",), regions=(region(BOX, span=(0, 5)),)))
    assert score(asked, "<p>a dog</p> {<10><10><50><50>} runs")["phrase_recall_50"] == 1.0
    wrong_place = score(asked, "<p>a dog</p> {<60><60><90><90>} runs")
    assert wrong_place["phrase_recall_50"] == 0.0 and wrong_place["token_f1"] == 1.0
    assert score(asked, "<p>a cat</p> {<10><10><50><50>} runs")["phrase_recall_50"] == 0.0


def test_token_f1_by_hand() -> None:
    assert token_f1("a red circle", "a blue circle") == pytest.approx(2 / 3)
    assert token_f1("", "a") == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_true_answers_score_one_and_every_task_has_its_headline(world: World, task: str) -> None:
    items = load_heldout(world.val / f"toy_{task}")
    figures = score_all(items, [one.answer for one in items])[task]
    assert headline(task) in figures and figures["samples"] == len(items)
    assert figures[headline(task)] == 1.0


def test_the_baseline_says_one_thing(world: World) -> None:
    items = [one for task in ("refer", "vqa") for one in load_heldout(world.val / f"toy_{task}")]
    figures = baseline(items)
    most_common = max(sum(a.answer == b.answer for b in items if b.turn.task == "vqa") for a in items)
    assert figures["vqa"]["accuracy"] == pytest.approx(most_common / 8)
    assert figures["refer"]["well_formed"] == 1.0
    text = table({"model": figures, "baseline": figures})
    assert "recall_50*" in text and "accuracy*" in text


def test_pictures_and_report_are_drawn(world: World, tmp_path: Path) -> None:
    from minigptv2.demo.report import _html_cards, _some_of_each_task
    from minigptv2.demo.scoring import Evaluation

    items = [one for task in TASKS for one in load_heldout(world.val / f"toy_{task}", 2)]
    evaluation = Evaluation(items, [one.answer for one in items], {})
    page = _html_cards(_some_of_each_task(evaluation, 1))
    assert page.count("<img src='data:image/jpeg;base64,") == len(TASKS)
