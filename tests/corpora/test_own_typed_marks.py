"""What the prompt adds itself, typed into a user's texts: never trained twice, never trained as letters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minigptv2.cli import main as cli
from minigptv2.errors import DataError
from minigptv2.shards.dropped import read_report
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS, render_turn
from minigptv2.typed_marks import answer_text, image_paths, query_text, without_image_marks
from tests.corpora.miniatures.files import jpeg, put
from tests.corpora.own_data import HERE

MARKS = (
    *("<image>", "<Image>", "<Img><ImageHere></Img>", "<img><imagehere></img>", "<ImageHere>", "<image></image>"),
    *("<Img></Img>", "<image_1>", "<image 1>", "<|image|>", "<|image_pad|>", "<|image_1|>", "<start_of_image>"),
    *(
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<im_start><im_patch><im_patch><im_end>",
        "[IMG]",
        "<IMG_CONTEXT>",
    ),
    *("<image_placeholder>", "<image_soft_token>", "< image >", "&lt;image&gt;"),
)
BOXES = {"boxes": [4, 4, 20, 20]}
QUESTION = {
    "vqa": {"question": "What color is it?", "answer": "red"},
    "refer": {"phrase": "the card", **BOXES},
    "conversation": {"question": "What color is it?", "answer": "red"},
}
IDENTIFIERS = [task.identifier for task in TASKS.values() if task.identifier]
PLACES: list[tuple[str, str, dict[str, Any]]] = [
    ("vqa", "question", QUESTION["vqa"]),
    ("vqa", "answer", QUESTION["vqa"]),
    ("caption", "answer", {"answer": "a red card"}),
    ("refer", "phrase", QUESTION["refer"]),
    ("refer", "question", {"question": "the card", **BOXES}),
    ("identify", "answer", {"answer": "a card", **BOXES}),
    ("identify", "phrase", {"phrase": "a card", **BOXES}),
    ("detection", "phrase", {"phrase": "a card", **BOXES}),
    ("conversation", "question", QUESTION["conversation"]),
    ("conversation", "answer", QUESTION["conversation"]),
]
QUERIES = [(task, key, entry) for task, key, entry in PLACES if key == "question" or (task, key) == ("refer", "phrase")]
ANSWERS = [place for place in PLACES if place not in QUERIES]


@dataclass
class Outcome:
    """Questions and answers that are trained on an entry, in forty drawn wordings, or why it is left out."""

    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    reason: str = ""


def outcomes(folder: Path, entries: list[dict[str, Any]]) -> list[Outcome]:
    """What becomes of each line of a file, after a good one."""
    put(folder / "a.jpg", jpeg())
    good = {"image": "a.jpg", "task": "caption", "answer": "good"}
    put(folder / "my.jsonl", "".join(f"{json.dumps(one)}\n" for one in (good, *entries)))
    words = ["shards", "build", str(folder / "my.jsonl"), "--output", str(folder / "out"), *HERE]
    code = cli(words)
    assert code in (0, 3) and (code == 0 or cli([*words, "--skip-faults"]) == 0)
    found = [Outcome() for _ in range(len(entries) + 2)]
    for row in read_report(folder / "out/dropped.jsonl"):
        found[int(str(row["key"]).removeprefix("line "))].reason = str(row["reason"])
    reader = CorpusReader(folder / "out")
    for number in range(len(reader)):
        record, line = reader.record(number), int(reader.key(number))
        turns = [
            render_turn(record.turns[0], record.width or 0, record.height or 0, Random(seed)) for seed in range(40)
        ]
        found[line].questions = sorted({turn.question for turn in turns})
        found[line].answers = sorted({turn.answer for turn in turns})
    assert all(bool(one.questions) != bool(one.reason) for one in found[1:])
    return found[2:]


def line(task: str, key: str, entry: dict[str, Any], text: str = "...") -> dict[str, Any]:
    return {"image": "a.jpg", "task": task, **entry, key: text.replace("...", entry[key])}


@pytest.mark.parametrize(("task", "key", "entry"), QUERIES, ids=lambda value: str(value)[:12])
def test_an_image_mark_in_a_question_is_removed(tmp_path: Path, task: str, key: str, entry: dict[str, Any]) -> None:
    texts = ["...", *(form.replace("@", mark) for form in ("@\n...", "... @", "@ ...", "@...") for mark in MARKS)]
    plain, *marked = outcomes(tmp_path, [line(task, key, entry, text) for text in texts])
    assert plain.questions and all(one == plain for one in marked)


@pytest.mark.parametrize(("task", "key", "entry"), ANSWERS, ids=lambda value: str(value)[:12])
def test_a_mark_or_an_identifier_in_an_answer_is_refused(
    tmp_path: Path, task: str, key: str, entry: dict[str, Any]
) -> None:
    typed = [*MARKS, "<img>a.jpg</img>", *IDENTIFIERS, "[INST]", "[/INST]", "<|im_end|>", "[VQA]"]
    texts = [form.replace("@", mark) for form in ("@ ...", "...@") for mark in typed]
    for text, one in zip(texts, outcomes(tmp_path, [line(task, key, entry, text) for text in texts]), strict=True):
        assert f"{key} contains " in one.reason and "remove it" in one.reason, text


@pytest.mark.parametrize(("task", "key", "entry"), QUERIES, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("form", ["@ ...", "@...", "<image> @ ...", "<Img><ImageHere></Img> @ ...", "  @\n..."])
def test_an_identifier_is_trained_once_and_another_task_s_is_refused(
    tmp_path: Path, task: str, key: str, entry: dict[str, Any], form: str
) -> None:
    entries = [line(task, key, entry, form.replace("@", identifier)) for identifier in IDENTIFIERS]
    plain, *typed = outcomes(tmp_path, [line(task, key, entry), *entries])
    own = TASKS[task].identifier
    for identifier, one in zip(IDENTIFIERS, typed, strict=True):
        if own and identifier == own:
            assert one == plain
        elif own:
            assert f"'{identifier}', which is written by the prompt of another task" in one.reason
        else:  # a conversation states the task of its question itself
            assert one.questions == [f"{identifier} {entry[key]}"]


def test_other_spellings_of_an_identifier_are_recognized(tmp_path: Path) -> None:
    texts = ("...", "[VQA] ...", "[ vqa ] ...", "[vqa]...", "[Vqa]  ...")
    plain, *spelled = outcomes(tmp_path, [line("vqa", "question", QUESTION["vqa"], text) for text in texts])
    assert all(one == plain for one in spelled)


@pytest.mark.parametrize("task", ["vqa", "conversation"])
def test_parts_of_a_prompt_elsewhere_in_a_question_are_refused(tmp_path: Path, task: str) -> None:
    texts = ("What is [vqa]?", "[vqa] [vqa] x", "[vqa] What is [refer]?", "x [caption]", "[INST] x", "x [/INST]")
    for one in outcomes(tmp_path, [line(task, "question", QUESTION[task], text) for text in texts]):
        assert "question contains '[" in one.reason and "written by the prompt" in one.reason


@pytest.mark.parametrize("task", ["vqa", "conversation"])
def test_marks_without_their_image_are_refused(tmp_path: Path, task: str) -> None:
    texts = ("<image> <image> x", "<image_1> x <image_2>", "<img>a.jpg</img> x", "<image>")
    for one in outcomes(tmp_path, [line(task, "question", QUESTION[task], text) for text in texts]):
        assert "question has " in one.reason


@pytest.mark.parametrize("image", [{"image": "a.jpg", "task": "conversation"}, {"task": "language"}])
def test_an_image_in_markdown_or_html_in_the_place_of_a_mark_is_refused(tmp_path: Path, image: dict[str, Any]) -> None:
    texts = ("![](a.jpg)\nWhat?", "What? ![it](a.jpg)", "<img src='a.jpg'> What?", "[image] What?", "{image}\nWhat?")
    entries = [{**image, "question": text, "answer": "A"} for text in texts]
    assert all("in the place of an image" in one.reason for one in outcomes(tmp_path, entries))
    code = {**image, "question": "Is <img src='a.jpg'> HTML, and f'{image}' Python?", "answer": "Yes."}
    assert outcomes(tmp_path, [code])[0].questions == [code["question"]]


def test_a_text_without_an_image_has_no_mark_and_no_identifier(tmp_path: Path) -> None:
    texts = ("<image>\nSay A.", "[vqa] Say A.", "Picture 1: <img>a.jpg</img>\nSay A.")
    entries = [{"task": "language", "question": text, "answer": "A"} for text in texts]
    assert all("no image" in one.reason for one in outcomes(tmp_path, entries))


@pytest.mark.parametrize(
    ("task", "typed", "query"),
    [
        ("vqa", "[vqa] Based on the image, respond to this question with a short answer: Is it red?", "Is it red?"),
        ("refer", "[refer] give me the location of the card", "the card"),
        ("refer", "[refer] where is the card?", "the card"),
        ("refer", "give me the location of the card", "give me the location of the card"),
        ("vqa", "Is it red?", "Is it red?"),
    ],
)
def test_the_published_wording_behind_an_identifier_is_not_doubled(task: str, typed: str, query: str) -> None:
    assert query_text(typed, task, "question") == query


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("my.csv", "image,caption\na.jpg,<image> a card\n", "line 2: answer contains the image mark '<image>'"),
        ("my.tsv", "image\tcaption\na.jpg\t[caption] a card\n", "line 2: answer contains '[caption]'"),
        ("my.json", {"name": "[detection] card"}, "category 1: name contains '[detection]'"),
    ],
)
def test_marks_in_tables_and_coco_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, words: str
) -> None:
    put(tmp_path / "a.jpg", jpeg())
    if isinstance(content, dict):
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
        images = [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]
        content = {"images": images, "categories": [{"id": 1, **content}], "annotations": [annotation]}
    put(tmp_path / name, content)
    assert cli(["shards", "build", str(tmp_path / name), "--output", str(tmp_path / "out"), *HERE]) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("<ref>card</ref><box>(250,250),(750,750)</box>", "<p>card</p> {<25><25><75><75>}"),
        ("<ref> a card </ref> <box>(0, 5),(1000, 999)</box>.", "<p>a card</p> {<0><0><100><99>}."),
        ("At <box>(1,2),(30,40)</box><box>(50,60),(70,80)</box> now", "At {<0><0><3><4>}<delim>{<5><6><7><8>} now"),
        ("Find <ref>the card</ref>", "Find the card"),
        ("no boxes: 3 < 4 and <b>bold</b> [1, 2]", "no boxes: 3 < 4 and <b>bold</b> [1, 2]"),
        ("a blue\ufeff card", "a blue card"),
        ("a matrix [[1, 2], [3, 4]] and [[1.5, 2, 3, 4]]", "a matrix [[1, 2], [3, 4]] and [[1.5, 2, 3, 4]]"),
    ],
)
def test_boxes_of_qwen_vl_become_ours_and_other_text_stays(text: str, trained: str) -> None:
    assert answer_text(text, "answer") == trained


@pytest.mark.parametrize(
    "text",
    [
        *("<box>(1,2),(3,4)", "<ref>x", "<quad>(1,2)</quad>", "<|object_ref_start|>x<|object_ref_end|>", "<bbox>"),
        *(
            "<loc0012><loc0013>",
            "<patch_index_0044>",
            "<|im_start|>user",
            "### Human: hi",
            "red</s>",
            "a\ufffdb",
            "a\0b",
        ),
        *("it is at [[100,200,300,400]]", "[[ 1, 2, 30, 40 ]].", "both [[1,2,3,4;5,6,7,8]]"),
        *('[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]', '{"label": "dog", "bbox_2d" : [1, 2, 3, 4]}'),
        *("<box>[[1,2,3,4]]</box>", "<|box_start|>(1,2),(3,4)<|box_end|>", "<ref-object>", "<<SYS>> x <</SYS>>"),
    ],
)
def test_marks_of_other_models_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="^answer contains "):
        answer_text(text, "answer")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<image>\nWhat?", "What?"),
        ("What? <image>", "What?"),
        ("What <image> is it?", "What is it?"),
        ("a\n<image>\nb", "a\nb"),
        ("a\r\n <image> <image> b", "a\nb"),
        ("<image>\n  x = 1\n    y  = 2", "x = 1\n    y  = 2"),
        ("<image>", ""),
    ],
)
def test_the_space_around_a_mark_is_closed_and_other_space_is_kept(text: str, left: str) -> None:
    assert without_image_marks(text, "question").text == left


def test_the_path_in_a_mark_of_qwen_vl_is_found() -> None:
    text = "Picture 1: <img>a b/c.jpg</img>\nPicture 2: <img> d.png </img>\nWhich?"
    assert image_paths(text) == ["a b/c.jpg", "d.png"]
    assert without_image_marks(text, "question").text == "Which?"
