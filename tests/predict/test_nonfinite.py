"""Tests that inference whose numbers are not finite is one error in every command, and that no file holds NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from minigptv2.cli import main
from minigptv2.errors import CheckpointError
from minigptv2.model.export import load_export, save_export
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, Request
from minigptv2.run_folder import RunFolder
from minigptv2.serve.batcher import Batcher
from minigptv2.tokenizer import Tokenizer
from minigptv2.tracking.log import RunLog, read_metrics
from minigptv2.tracking.trackers import TrackedRun
from tests.model.tiny import save_tiny_export

IMAGE = Image.new("RGB", (20, 20), "red")
REQUEST = Request("[vqa] what is it?", (IMAGE,))
DECODINGS = [
    Decoding(3),
    Decoding(3, temperature=1.0),
    Decoding(3, temperature=1.0, top_p=0.5),
    Decoding(3, beams=3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """An export whose weights are finite, but so large that its logits are not."""
    made = tmp_path_factory.mktemp("large")
    model, _, info = load_export(save_tiny_export(made, tokenizer.path))
    from minigptv2.model.bases import names_to_export
    from minigptv2.model.export import ExportContent
    from minigptv2.model.weights import named_canonical

    named = named_canonical(model)
    tensors = {name: named[name].detach().clone() for name in names_to_export(model, info.model, {})}
    tensors["language_model.lm_head.weight"].fill_(3e38)
    save_export(made / "export", ExportContent(tensors, info.model, tokenizer, list(info.lineage), {}))
    return made / "export"


@pytest.fixture(scope="module", params=[math.nan, math.inf, -math.inf])
def predictor(folder: Path, request: pytest.FixtureRequest) -> Predictor:
    model, tokenizer, _ = load_export(folder)
    model.language_model.lm_head.weight.data.fill_(0.01)
    model.language_model.lm_head.weight.data[7, 0] = request.param  # one logit of each token
    return Predictor(model, tokenizer)


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_answers(predictor: Predictor, decoding: Decoding) -> None:
    with pytest.raises(CheckpointError, match="outputs are not finite"):
        predictor.answer([REQUEST, Request("Say red.")], decoding)


def test_most_likely_tokens_streams_and_scores(predictor: Predictor) -> None:
    with pytest.raises(CheckpointError, match="outputs are not finite"):
        predictor.reply([REQUEST], Decoding(2), top=3)
    with pytest.raises(CheckpointError, match="outputs are not finite"):
        list(predictor.stream(REQUEST, Decoding(2)))
    for layout in ("packed", "padded"):
        with pytest.raises(CheckpointError, match="outputs are not finite"):
            predictor.score([Case((("[vqa] what is it?", "red"),), (IMAGE,))], layout=layout)


def test_a_served_request_fails_with_the_error(predictor: Predictor) -> None:
    batcher = Batcher(predictor, max_rows=2, max_waiting=4)
    try:
        for decoding in DECODINGS[:3]:
            ticket = batcher.submit(REQUEST, decoding)
            with pytest.raises(CheckpointError, match="outputs are not finite"):
                list(ticket)
            assert ticket.finish_reason == "error" and not ticket.text and batcher.load.alive
    finally:
        batcher.close()


@pytest.mark.parametrize("command", ["ask", "predict", "score", "sampled"])
def test_a_command_ends_with_one_line_and_exit_code_4(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    IMAGE.save(tmp_path / "a.png")
    turn = {"question": "[vqa] what is it?"} | ({"answer": "red"} if command == "score" else {})
    (tmp_path / "in.jsonl").write_text(json.dumps({"image": "a.png", "turns": [turn]}) + "\n")
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    words = {
        "ask": ["ask", str(tmp_path / "a.png"), "what?"],
        "sampled": ["ask", str(tmp_path / "a.png"), "what?", "--temperature", "1"],
        "predict": ["predict", *files],
        "score": ["score", *files],
    }[command]
    assert main([*words, "--model", str(folder)]) == 4
    said = capsys.readouterr().err
    assert "CheckpointError: the model's outputs are not finite" in said and "Traceback" not in said
    assert not (tmp_path / "out.jsonl").exists() or (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize("written", ['{"x": NaN}', '{"x": -Infinity}', '{"x": {"y": [1e999]}}'])
def test_a_line_with_such_a_number_is_skipped(
    written: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"image": None, "turns": [{"question": "a?", "answer": "b"}]})[:-1] + f", {written[1:]}"
    (tmp_path / "in.jsonl").write_text(line + "\n")
    words = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["score", "--model", str(folder), *words]) == 3
    assert "not JSON compliant" in capsys.readouterr().err and (tmp_path / "out.jsonl").read_text() == ""


def test_metrics_hold_null_for_a_number_that_is_not_finite(tmp_path: Path) -> None:
    log = RunLog(TrackedRun(RunFolder(tmp_path), 0), total_steps=2, active=True)
    log.metrics(1, {"loss": math.nan, "by": {"a": [math.inf, 1.0]}})
    log.metrics(2, {"loss": 1.0})
    log.close()
    text = RunFolder(tmp_path).metrics.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [row["loss"] for row in read_metrics(tmp_path)] == [None, 1.0]
    assert read_metrics(tmp_path)[0]["by"] == {"a": [None, 1.0]}


def test_finite_outputs_pass(folder: Path) -> None:
    model, tokenizer, _ = load_export(folder)
    torch.nn.init.normal_(model.language_model.lm_head.weight)
    for decoding in DECODINGS:
        assert isinstance(Predictor(model, tokenizer).answer([REQUEST], decoding)[0], str)
