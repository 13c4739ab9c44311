"""Tests the tasks: the registry, rendering, parsing and scoring, with values computed by hand."""

from random import Random
from typing import Literal

import pytest

from minigptv2.boxes import Box, iou, match_boxes
from minigptv2.corpora.sources import toy
from minigptv2.record import Region, Turn
from minigptv2.tasks import TASKS, RenderedTurn, Task, TurnShape, render_turn, task_id, task_of
from minigptv2.tasks.detection import DetectionTask
from minigptv2.tasks.registry import by_name
from minigptv2.tasks.text_match import token_f1
from minigptv2.tasks.vqa import VqaTask
from tests.conftest import TOY_TASKS

BOX = Box(10, 10, 50, 50)
PUBLISHED = ("vqa", "caption", "grounding", "refer", "identify", "detection")
WITH_IDENTIFIER = [name for name, task in TASKS.items() if task.identifier]


def test_the_tasks_are_in_the_order_of_their_ids() -> None:
    assert list(TASKS)[:8] == [*PUBLISHED, "conversation", "language"], "append added tasks: the position is the id"
    assert [task_id(name) for name in TASKS] == list(range(len(TASKS)))
    assert tuple(WITH_IDENTIFIER[:6]) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_task_has_at_least_eight_wordings(name: str) -> None:
    assert len(set(TASKS[name].instructions)) >= 8


def test_the_published_caption_prompt_is_trained_and_the_first_wording_is_ours() -> None:
    task = TASKS["caption"]
    assert "[caption] please describe this image?" in [task.ask("", wording) for wording in task.instructions]
    assert task.ask() == "[caption] Describe this image in one sentence."


@pytest.mark.parametrize("name", WITH_IDENTIFIER)
def test_the_wordings_of_a_task_have_a_place_for_its_query(name: str) -> None:
    task = TASKS[name]
    assert task.name == name and task.identifier == f"[{name}]"
    assert task.instructions and len(set(task.instructions)) == len(task.instructions)
    with_query = ["{query}" in wording for wording in task.instructions]
    assert all(with_query) if task.query != "none" else not any(with_query)


@pytest.mark.parametrize("name", TOY_TASKS)
def test_the_true_answer_parses_as_well_formed_with_its_boxes_and_scores_one(name: str) -> None:
    task = TASKS[name]
    for number, sample in enumerate(toy.samples(name, 40, None, "val")):  # type: ignore[arg-type]
        turn = sample.record.turns[0]
        rendered = render_turn(turn, toy.SIDE, toy.SIDE, Random(number))
        assert task_of(rendered.question).identifier == task.identifier
        parsed = task.parse(rendered.answer, toy.SIDE, toy.SIDE)
        assert parsed.well_formed
        if task.answer == "text":
            assert parsed.boxes == ()
        else:
            truth = [box for region in turn.regions for box in region.boxes]
            assert len(parsed.boxes) == len(truth)
            assert all(iou(predicted, true) > 0.75 for predicted, true in zip(parsed.boxes, truth, strict=True))
        assert task.score(turn, rendered.answer, toy.SIDE, toy.SIDE)[task.headline] == 1.0


@pytest.mark.parametrize("query", ["phrase", "box"])
def test_a_query_about_a_region_requires_one_region(query: Literal["phrase", "box"]) -> None:
    class Regionless(VqaTask):
        name = "regionless"

    task = Regionless()
    task.query = query
    message = f"task 'regionless': query \"{query}\" is the {query} of a turn's only region and requires"
    with pytest.raises(ValueError, match=message):
        by_name(task)
    task.shape = TurnShape(answers=True, regions="one")
    assert by_name(task) == {"regionless": task}
    with pytest.raises(ValueError, match="two tasks are named 'regionless'"):
        by_name(task, task)


def test_drawing_is_a_function_of_the_seed() -> None:
    turn = Turn("vqa", "how many?", ("one", "two", "two"))
    assert render_turn(turn, 1, 1, Random(5)) == render_turn(turn, 1, 1, Random(5))
    drawn = [render_turn(turn, 1, 1, Random(seed)).answer for seed in range(600)]
    assert drawn.count("two") / len(drawn) == pytest.approx(2 / 3, abs=0.07)


@pytest.mark.parametrize(
    ("turn", "options"),
    [
        (Turn("vqa", "what?", ("x", "y")), (2, 8)),
        (Turn("caption", answers=("x",)), (1, 8)),
        (Turn("grounding", answers=("a dog",), regions=(Region((BOX,), ("a dog",), (0, 5)),)), (8,)),
        (Turn("refer", regions=(Region((BOX,), ("x", "y", "z")),)), (3, 8)),
        (Turn("identify", regions=(Region((BOX,), ("x", "y", "z")),)), (3, 8)),
        (Turn("detection", regions=(Region((BOX,), ("x",)), Region((BOX,), ("y", "z")))), (1, 2, 8)),
        (Turn("detection", "a text", regions=(Region((BOX,), ("x",)),)), (1, 8)),
        (Turn("conversation", "what?", ("x", "y")), (2,)),
        (Turn("language", "what?", ("x",)), (1,)),
    ],
    ids=lambda value: value.task if isinstance(value, Turn) else "",
)
def test_alternatives_are_drawn_first_and_the_wording_last(turn: Turn, options: tuple[int, ...]) -> None:
    """One draw for each list of alternatives, even from one: a change here changes the samples of every run."""
    random, reference = Random(7), Random(7)
    render_turn(turn, 100, 100, random)
    for count in options:
        reference.randrange(count)
    assert random.getstate() == reference.getstate()


def test_a_text_to_parse_has_its_own_wordings() -> None:
    detection = TASKS["detection"]
    assert isinstance(detection, DetectionTask) and len(set(detection.text_instructions)) >= 8
    regions = (Region((Box(8, 16, 24, 32),), ("a dog",)), Region((Box(0, 0, 64, 64), Box(1, 1, 9, 9)), ("the field",)))
    turn = Turn("detection", "a dog runs over the field", regions=regions)
    questions = {render_turn(turn, 64, 64, Random(seed)).question for seed in range(200)}
    assert questions == {detection.ask(turn.question or "", wording) for wording in detection.text_instructions}
    assert all("a dog runs over the field" in question for question in questions)
    answer = "<p>a dog</p> {<12><25><37><50>} <p>the field</p> {<0><0><100><100>}<delim>{<1><1><14><14>}"
    assert render_turn(turn, 64, 64).answer == answer


def test_refer_and_identify_of_one_object_agree() -> None:
    region = Region((Box(8, 16, 24, 32),), ("the red circle",))
    refer = render_turn(Turn("refer", regions=(region,)), 64, 64)
    identify = render_turn(Turn("identify", regions=(region,)), 64, 64)
    assert refer.question == "[refer] give me the location of the red circle"
    assert refer.answer == "{<12><25><37><50>}" and refer.answer in identify.question
    assert identify.answer == "the red circle"


def test_a_question_without_an_identifier_is_conversation() -> None:
    assert task_of("what is this?").name == "conversation"
    assert task_of("  [refer] the dog").name == "refer"
    turn = Turn("conversation", "what is this?", ("a dog",))
    assert render_turn(turn, 9, 9) == RenderedTurn("conversation", "what is this?", "a dog")


@pytest.mark.parametrize(
    ("text", "task", "well_formed", "boxes"),
    [
        ("{<1><2><3><4>}", "refer", True, 1),
        ("it is at {<1><2><3><4>}", "refer", False, 1),
        ("no idea", "refer", False, 0),
        ("<p>a dog</p> {<1><2><3><4>}<delim>{<5><6><7><8>} runs", "grounding", True, 2),
        ("<p>a dog</p> runs", "grounding", False, 0),
        ("<p>a dog {<1><2><3><4>}", "grounding", False, 0),
        ("a dog", "detection", False, 0),
        ("", "caption", False, 0),
    ],
)
def test_any_answer_is_parsed_without_an_error(text: str, task: str, well_formed: bool, boxes: int) -> None:
    parsed = TASKS[task].parse(text, 100, 100)
    assert parsed.well_formed is well_formed
    assert len(parsed.boxes) == boxes


def test_a_grounded_caption_reads_as_plain_text() -> None:
    text = "<p>a dog</p> {<1><2><3><4>} and <p>a cat</p> {<5><6><7><8>}"
    parsed = TASKS["grounding"].parse(text, 100, 100)
    assert parsed.text == "a dog and a cat"
    assert [item.phrase for item in parsed.grounded] == ["a dog", "a cat"]
    assert TASKS["grounding"].parse("<p>a dog</p> and a cat", 100, 100).text == "a dog and a cat"


def region(*boxes: Box, phrase: str = "a dog", span: tuple[int, int] | None = None) -> Region:
    return Region(boxes, (phrase,), span)


def score(turn: Turn, text: str) -> dict[str, float]:
    task: Task = TASKS[turn.task]
    return task.score(turn, text, 100, 100)


def test_refer_counts_boxes_that_overlap_by_half() -> None:
    turn = Turn("refer", regions=(region(BOX),))
    assert score(turn, "{<10><10><50><50>}") == {"recall_50": 1.0, "mean_iou": 1.0, "well_formed": 1.0}
    half = score(turn, "{<10><10><50><29>}")
    assert half["mean_iou"] == pytest.approx(19 / 40) and half["recall_50"] == 0.0
    assert score(turn, "a dog") == {"recall_50": 0.0, "mean_iou": 0.0, "well_formed": 0.0}


def test_vqa_admits_every_accepted_answer() -> None:
    turn = Turn("vqa", "what?", ("red", "dark red"))
    assert score(turn, "Dark  red.") == {"accuracy": 1.0}
    assert score(turn, "blue") == {"accuracy": 0.0}


def test_detection_uses_each_predicted_box_once() -> None:
    other = Box(60, 60, 90, 90)
    turn = Turn("detection", regions=(region(BOX, other),))
    both = "<p>a dog</p> {<10><10><50><50>}<delim>{<60><60><90><90>}"
    assert score(turn, both)["box_f1_50"] == 1.0
    twice = "<p>a dog</p> {<10><10><50><50>}<delim>{<10><10><50><50>}"
    assert score(turn, twice)["box_f1_50"] == 0.5
    assert match_boxes((BOX, BOX), (BOX, other)) == [1.0, 0.0]


def test_grounding_needs_the_phrase_and_the_box() -> None:
    turn = Turn("grounding", answers=("a dog runs",), regions=(region(BOX, span=(0, 5)),))
    assert score(turn, "<p>a dog</p> {<10><10><50><50>} runs")["phrase_recall_50"] == 1.0
    wrong_place = score(turn, "<p>a dog</p> {<60><60><90><90>} runs")
    assert wrong_place["phrase_recall_50"] == 0.0 and wrong_place["token_f1"] == 1.0
    assert score(turn, "<p>a cat</p> {<10><10><50><50>} runs")["phrase_recall_50"] == 0.0


@pytest.mark.parametrize("name", ["caption", "conversation", "language"])
def test_texts_are_scored_by_exact_match_and_word_overlap(name: str) -> None:
    scores = score(Turn(name, "what?", ("a red circle", "a square")), "a blue circle")
    assert scores == {"exact": 0.0, "token_f1": pytest.approx(2 / 3)}


def test_token_f1_by_hand() -> None:
    assert token_f1("a red circle", "a blue circle") == pytest.approx(2 / 3)
    assert token_f1("", "a") == 0.0
