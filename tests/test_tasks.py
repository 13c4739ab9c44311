"""The table of tasks: questions, answers and parsing."""

from random import Random

import pytest

from minigptv2.boxes import Box, iou
from minigptv2.corpora.sources import toy
from minigptv2.record import SIX_TASKS, Region, Turn
from minigptv2.tasks import TASKS, parse_answer, speak, task_of


def test_the_table_has_the_six_tasks_with_pools_of_eight() -> None:
    assert tuple(TASKS) == SIX_TASKS
    for name, task in TASKS.items():
        assert task.name == name and task.identifier == f"[{name}]"
        assert len(set(task.instructions)) >= 8
        with_query = ["{query}" in wording for wording in task.instructions]
        assert all(with_query) or not any(with_query)


@pytest.mark.parametrize("task", SIX_TASKS)
def test_the_true_answer_parses_as_well_formed_with_its_boxes(task: str) -> None:
    for number, sample in enumerate(toy.samples(task, 40, None, "val")):  # type: ignore[arg-type]
        turn = sample.record.turns[0]
        spoken = speak(turn, toy.SIDE, toy.SIDE, Random(number))
        assert task_of(spoken.question) == task
        parsed = parse_answer(spoken.answer, task, toy.SIDE, toy.SIDE)
        assert parsed.well_formed
        if TASKS[task].grounded:
            truth = [box for region in turn.regions for box in region.boxes]
            assert len(parsed.boxes) == len(truth)
            assert all(iou(said, meant) > 0.75 for said, meant in zip(parsed.boxes, truth, strict=True))
        else:
            assert parsed.boxes == ()


def test_drawing_is_a_function_of_the_seed() -> None:
    turn = Turn("vqa", "how many?", ("one", "two", "two"))
    assert speak(turn, 1, 1, Random(5)) == speak(turn, 1, 1, Random(5))
    drawn = [speak(turn, 1, 1, Random(seed)).answer for seed in range(600)]
    assert drawn.count("two") / len(drawn) == pytest.approx(2 / 3, abs=0.07)


def test_a_text_to_parse_is_asked_in_its_own_wordings() -> None:
    assert len(set(TASKS["detection"].text_instructions)) >= 8
    regions = (Region((Box(8, 16, 24, 32),), ("a dog",)), Region((Box(0, 0, 64, 64), Box(1, 1, 9, 9)), ("the field",)))
    turn = Turn("detection", "a dog runs over the field", regions=regions)
    questions = {speak(turn, 64, 64, Random(seed)).question for seed in range(200)}
    assert questions == {TASKS["detection"].ask(turn.question or "", n, of_text=True) for n in range(8)}
    assert all("a dog runs over the field" in question for question in questions)
    answer = "<p>a dog</p> {<12><25><37><50>} <p>the field</p> {<0><0><100><100>}<delim>{<1><1><14><14>}"
    assert speak(turn, 64, 64).answer == answer


def test_refer_and_identify_of_one_object_agree() -> None:
    region = Region((Box(8, 16, 24, 32),), ("the red circle",))
    refer = speak(Turn("refer", regions=(region,)), 64, 64)
    identify = speak(Turn("identify", regions=(region,)), 64, 64)
    assert refer.question == "[refer] give me the location of the red circle"
    assert refer.answer == "{<12><25><37><50>}" and refer.answer in identify.question
    assert identify.answer == "the red circle"


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
def test_answers_of_a_model_are_parsed_without_raising(text: str, task: str, well_formed: bool, boxes: int) -> None:
    parsed = parse_answer(text, task, 100, 100)
    assert parsed.well_formed is well_formed
    assert len(parsed.boxes) == boxes


def test_a_grounded_caption_reads_as_plain_text() -> None:
    parsed = parse_answer("<p>a dog</p> {<1><2><3><4>} and <p>a cat</p> {<5><6><7><8>}", "grounding", 100, 100)
    assert parsed.text == "a dog and a cat"
    assert [item.phrase for item in parsed.grounded] == ["a dog", "a cat"]
