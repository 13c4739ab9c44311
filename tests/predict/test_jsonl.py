"""Tests files of requests: order, relative paths, bad lines and interruptions."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest

from minigptv2.cli import main
from minigptv2.predict.jsonl import _is_cut_line
from minigptv2.tokenizer import Tokenizer
from tests.model.tiny import save_tiny_export
from tests.predict.test_predictor import A, B
from tests.test_terminal_text import HOSTILE, controls


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> str:
    return str(save_tiny_export(tmp_path_factory.mktemp("model"), tokenizer.path))


def write(folder: Path, lines: list[Any]) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    A.save(folder / "images" / "a.png")
    B.save(folder / "images" / "b.png")
    file = folder / "in.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def run(command: str, model: str, source: Path, output: Path, *more: str) -> int:
    return main([command, "--model", model, "--input", str(source), "--output", str(output), *more])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


GOOD = [
    {"image": "images/a.png", "turns": [{"question": "[vqa] what is it? "}], "id": 7},
    {"image": None, "turns": [{"question": "Say red twice."}]},
    {"image": ["images/a.png", "images/b.png"], "turns": [{"question": "[vqa] what differs?"}]},
    {
        "image": "images/b.png",
        "turns": [
            {"question": "What is it?", "answer": "a bar"},
            {"question": "[refer] the bar"},
            {"question": "Sure?"},
        ],
    },
]
TOKENS = ("--max-new-tokens", "6")


def test_answers_come_in_order_with_what_was_asked(model: str, tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    assert run("predict", model, source, tmp_path / "out.jsonl", *TOKENS) == 0
    answered = rows(tmp_path / "out.jsonl")
    assert [row["line"] for row in answered] == [1, 2, 3, 4]
    assert answered[0]["id"] == 7 and answered[0]["turns"][0]["question"] == "[vqa] what is it?"
    assert answered[3]["turns"][0] == GOOD[3]["turns"][0]  # what was given is history, not asked again
    assert all(isinstance(turn["answer"], str) for row in answered for turn in row["turns"])
    assert answered[1]["turns"][0]["boxes"] == []


def test_later_turns_know_earlier_answers(model: str, tmp_path: Path) -> None:
    source = write(tmp_path, GOOD[3:])
    assert run("predict", model, source, tmp_path / "out.jsonl", *TOKENS) == 0
    said = rows(tmp_path / "out.jsonl")[0]["turns"]
    given = {
        "image": "images/b.png",
        "turns": [*({k: t[k] for k in ("question", "answer")} for t in said[:2]), {"question": "Sure?"}],
    }
    again = write(tmp_path, [given])
    assert run("predict", model, again, tmp_path / "again.jsonl", *TOKENS) == 0
    assert rows(tmp_path / "again.jsonl")[0]["turns"][2]["answer"] == said[2]["answer"]


def test_an_interrupted_output_is_continued_with_nothing_twice(model: str, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path, GOOD * 5)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert run("predict", model, source, whole, *TOKENS) == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    assert run("predict", model, source, cut, *TOKENS) == 0
    assert "answered 13, 7 before" in capsys.readouterr().out
    assert cut.read_bytes() == whole.read_bytes()
    answers = write(tmp_path, [row | {"turns": [*row["turns"], {"question": "Sure?"}]} for row in rows(whole)])
    assert run("predict", model, answers, tmp_path / "more.jsonl", *TOKENS) == 0  # its `line` and `of` are old ones
    assert run("predict", model, answers, tmp_path / "more.jsonl", *TOKENS) == 0
    assert "answered 0, 20 before" in capsys.readouterr().out
    source = write(tmp_path, GOOD * 5)
    assert run("predict", model, source, cut, *TOKENS) == 0
    assert cut.read_bytes() == whole.read_bytes()


def test_bad_lines_are_named_and_skipped(model: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    bad = [
        "{not json",
        {"turns": []},
        {"image": "images/none.png", "turns": [{"question": "x"}]},
        {"image": "broken.jpg", "turns": [{"question": "x"}]},
        {"image": 5, "turns": [{"question": "x"}]},
        {"turns": [{"answer": "x"}]},
        {"turns": [{"question": "x", "answer": "y"}]},
        {"turns": [{"question": "red " * 1200}]},
        {"turns": [{"question": f"{n} " + "red " * 150} for n in range(9)]},
        '{"turns": [{"question": "half a \\ud83d pair"}]}',
        {"image": "a\u0000b.png", "turns": [{"question": "x"}]},
    ]
    source = write(tmp_path, [bad[0], GOOD[0], *bad[1:], GOOD[1]])
    assert run("predict", model, source, tmp_path / "out.jsonl", *TOKENS) == 3
    said = capsys.readouterr()
    assert said.err.count("skipped ") == len(bad)
    reasons = (
        (1, "not JSON"),
        (4, "No such file"),
        (5, "broken.jpg: a text file, not the image"),
        (9, "1024 positions of the model"),
    )
    for number, reason in reasons:
        assert any(f"{source}:{number}: " in line and reason in line for line in said.err.splitlines()), number
    assert "answered 2, skipped 11" in said.out
    assert [row["line"] for row in rows(tmp_path / "out.jsonl")] == [2, 13]


def test_an_output_of_other_requests_is_not_continued(model: str, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path, GOOD)
    assert run("predict", model, source, tmp_path / "out.jsonl", *TOKENS) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert run("predict", model, write(tmp_path, GOOD[1:]), tmp_path / "out.jsonl", *TOKENS) == 3
    assert "written for another line, model or setting" in capsys.readouterr().err
    assert run("predict", model, write(tmp_path, GOOD), tmp_path / "out.jsonl", "--max-new-tokens", "7") == 3
    notes = tmp_path / "notes.txt"
    notes.write_text("mine\n")
    assert run("predict", model, source, notes, *TOKENS) == 3 and notes.read_text() == "mine\n"
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "mine", [b"mine", b"\x89PNG", b'{"line": "a"}', b'{"line": 3, "text": 1}', b'{"line": 1, "of": "ab"}\nmine', b" "]
)
def test_a_file_without_a_complete_line_is_not_erased(model: str, tmp_path: Path, capsys: Any, mine: bytes) -> None:
    source = write(tmp_path, GOOD)
    (tmp_path / "mine").write_bytes(mine)
    assert run("predict", model, source, tmp_path / "mine", *TOKENS) == 3
    assert (tmp_path / "mine").read_bytes() == mine and "not continued" in capsys.readouterr().err


def test_a_line_cut_off_anywhere_is_recognized() -> None:
    row = b'{"line": 12, "of": "0123456789ab", "turns": []}'
    assert all(_is_cut_line(row[:length]) for length in range(1, len(row)))


def test_the_input_is_refused_as_output(model: str, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path, [GOOD[0]])
    source.write_text(source.read_text().rstrip())
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for output in (source, tmp_path / "images" / ".." / "in.jsonl", tmp_path / "link.jsonl"):
        assert run("predict", model, source, output, *TOKENS) == 3
        assert "is the input file" in capsys.readouterr().err and source.read_bytes() == before


def test_predictions_can_be_scored(model: str, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path, GOOD)
    assert run("predict", model, source, tmp_path / "said.jsonl", *TOKENS, "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["answered"], outcome["before"], outcome["skipped"]) == (4, 0, [])
    assert run("score", model, tmp_path / "said.jsonl", tmp_path / "scores.jsonl") == 0
    scores = rows(tmp_path / "scores.jsonl")
    assert [len(score["nll"]) == len(score["target_ids"]) > 0 for score in scores] == [True] * 4
    nll = [value for score in scores for value in score["nll"]]
    assert f"mean loss {sum(nll) / len(nll):.6f} over {len(nll)} supervised tokens" in capsys.readouterr().out
    assert run("score", model, tmp_path / "said.jsonl", tmp_path / "scores.jsonl", "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["scored"], outcome["before"], outcome["supervised_tokens"]) == (0, 4, len(nll))
    assert outcome["mean_loss"] == pytest.approx(sum(nll) / len(nll))
    assert run("score", model, source, tmp_path / "none.jsonl") == 3
    assert 'no "answer" to score' in capsys.readouterr().err


def test_answers_are_scored_in_a_prompt_style(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published form has one more `<s>` and one space less, and predictions report its length."""
    source = write(tmp_path, [{"image": "images/a.png", "turns": [{"question": "[vqa] what?", "answer": "a bar"}]}])
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"image": "images/a.png", "turns": [{"question": "[vqa] what?"}]}) + "\n")
    found = {}
    for style in ("trained", "published"):
        words = ("--prompt-style", style)
        assert run("predict", model, asked, tmp_path / f"{style}.said.jsonl", *TOKENS, *words) == 0
        assert run("score", model, source, tmp_path / f"{style}.jsonl", *words) == 0
        (score,), (said,) = rows(tmp_path / f"{style}.jsonl"), rows(tmp_path / f"{style}.said.jsonl")
        assert score["length"] == said["turns"][0]["context_length"] + len(score["target_ids"])
        found[style] = score
    assert found["trained"]["target_ids"] == found["published"]["target_ids"]
    assert found["trained"]["nll"] != found["published"]["nll"]
    assert run("score", model, source, tmp_path / "trained.jsonl", "--prompt-style", "published") == 3
    assert "written for another line, model or setting" in capsys.readouterr().err


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\udcff" not in text])
def test_lines_on_a_terminal_have_no_control_characters(text: str, model: str, tmp_path: Path) -> None:
    source = write(tmp_path, [{"image": None, "turns": [{"question": f"say {text}"}], "id": text}])
    terminal, line = pty.openpty()
    try:
        assert run("predict", model, source, Path(os.ttyname(line)), "--max-new-tokens", "2") == 0
        said = b""
        while not said.endswith(b"\r\n"):
            said += os.read(terminal, 1 << 16)
    finally:
        os.close(line)
        os.close(terminal)
    written = said.decode().removesuffix("\r\n")
    assert not controls(written)
    assert json.loads(written)["id"] == text
