"""Tests that ranks, batches and interruptions do not change predictions, and tests tables, page and comparison."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.errors import DataError
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.evaluate.questions import Asking, Question, corpus_folder, questions_of
from minigptv2.evaluate.rules import Prediction
from minigptv2.evaluate.rules.score_answers import score_choice
from minigptv2.evaluate.rules.score_boxes import score_phrases
from minigptv2.evaluate.runner import Settings, _cost, divide, evaluate_benchmark
from minigptv2.record import Region, Turn
from minigptv2.shards.reader import CorpusReader
from tests.conftest import World
from tests.corpora.miniatures.captions import textcaps_val
from tests.evaluate.corpora import Oracle, corpus_for
from tests.model.tiny import save_tiny_export
from tests.ranks import run_ranks

TASKS = ("refer", "vqa", "identify")


@pytest.fixture(scope="module")
def export(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of a tiny model with random weights. Its answers are noise of various lengths."""
    return str(save_tiny_export(tmp_path_factory.mktemp("tiny"), world.tokenizer_folder, seed=1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two benchmarks: one with generated answers, one with answers chosen by the losses of the choices."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("okvqa", "iconqa"):
        spec = BENCHMARKS[name]
        corpus_for(spec, folder / spec.corpus / spec.split)
    return folder


def evaluate(export: str, world: World, data: Path, output: Path, *words: str) -> dict[str, str]:
    """Evaluate both benchmarks and some held-out shards with the command. Returns the text that it wrote by file."""
    corpora = [word for task in TASKS for word in ("--corpus", f"toy_{task}")]
    command = [
        "evaluate",
        "--model",
        export,
        "--benchmark",
        "okvqa,iconqa",
        "--data",
        str(data),
        "--shards",
        str(world.val),
        *corpora,
        "--output",
        str(output),
        "--samples",
        "2",
        *words,
    ]
    assert cli(command) == 0
    return written(output)


def written(output: Path) -> dict[str, str]:
    files = [*output.rglob("predictions.jsonl"), output / "results.json", output / "results.md"]
    return {str(file.relative_to(output)): file.read_text() for file in files}


@pytest.fixture(scope="module")
def plain(export: str, world: World, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one process with a batch size of 4."""
    output = tmp_path_factory.mktemp("plain")
    evaluate(export, world, data, output, "--batch-size", "4")
    return output


@pytest.mark.parametrize("words", [("--batch-size", "1", "--layout", "padded"), ("--batch-size", "64")], ids=str)
def test_any_batch_size_and_layout_give_the_same(
    export: str, world: World, data: Path, plain: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert evaluate(export, world, data, tmp_path / "out", *words) == written(plain)
    answers = [json.loads(line)["answer"] for line in (plain / "toy_vqa/vqa/predictions.jsonl").open()]
    assert len(set(answers)) > 1  # the answers differ between questions


def in_rank(**arguments: Any) -> int:
    """Run by each rank of `test_two_ranks_give_the_same`."""
    return cli(arguments["words"])


def test_two_ranks_give_the_same(export: str, world: World, data: Path, plain: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    corpora = [word for task in TASKS for word in ("--corpus", f"toy_{task}")]
    words = [
        "evaluate",
        "--model",
        export,
        "--benchmark",
        "okvqa,iconqa",
        "--data",
        str(data),
        "--shards",
        str(world.val),
        *corpora,
        "--output",
        str(output),
        "--samples",
        "2",
        "--batch-size",
        "3",
    ]
    assert run_ranks("tests.evaluate.test_runner:in_rank", 2, tmp_path, words=words) == [0, 0]
    assert written(output) == written(plain)


def test_an_interrupted_evaluation_ends_with_the_same_results(tmp_path: Path) -> None:
    spec = BENCHMARKS["refcoco_val"]
    corpus = corpus_for(spec, tmp_path / "corpus")

    def run(oracle: Oracle, output: Path) -> None:
        evaluate_benchmark(oracle, spec, corpus, output, Settings(batch_size=3))  # type: ignore[arg-type]

    whole = Oracle(spec, corpus)
    run(whole, tmp_path / "whole")
    for stop_after in (0, 3, 9):
        output, cut = tmp_path / f"cut{stop_after}", Oracle(spec, corpus)
        cut.stop_after = stop_after
        with pytest.raises(KeyboardInterrupt):
            run(cut, output)
        part = output / "answers.0.jsonl"
        lines = part.read_text().splitlines(keepends=True)
        assert len(lines) == stop_after
        part.write_text("".join(lines[: stop_after // 2]) + '{"id": "half a li')  # killed while writing a line
        (output / "answers.1.jsonl").write_text(
            "".join(lines[stop_after // 2 :])
        )  # left by a rank that no longer exists
        rest = Oracle(spec, corpus)
        run(rest, output)
        assert rest.asked == whole.asked - stop_after
        assert (output / "predictions.jsonl").read_text() == (tmp_path / "whole/predictions.jsonl").read_text()
        assert sorted(file.name for file in output.iterdir()) == ["predictions.jsonl"]
        again = Oracle(spec, corpus)
        run(again, output)
        assert again.asked == 0


def test_answers_of_another_model_or_corpus_are_not_reused(tmp_path: Path) -> None:
    spec = BENCHMARKS["gqa"]
    corpus = corpus_for(spec, tmp_path / "corpus")
    oracle = Oracle(spec, corpus)
    evaluate_benchmark(oracle, spec, corpus, tmp_path / "out", Settings())  # type: ignore[arg-type]
    oracle.identity = "another"
    with pytest.raises(DataError, match="answers of another model, corpus or setting. Choose another --output"):
        evaluate_benchmark(oracle, spec, corpus, tmp_path / "out", Settings())  # type: ignore[arg-type]


def test_a_smaller_limit_does_not_lose_answers(tmp_path: Path) -> None:
    spec = BENCHMARKS["gqa"]
    corpus, output = corpus_for(spec, tmp_path / "corpus"), tmp_path / "out"
    oracle: Any = Oracle(spec, corpus)
    evaluate_benchmark(oracle, spec, corpus, output, Settings())
    before = (output / "predictions.jsonl").read_bytes()
    with pytest.raises(DataError, match="out contains 10 answers, 6 of them to questions beyond --limit"):
        evaluate_benchmark(oracle, spec, corpus, output, Settings(limit=2))
    assert (output / "predictions.jsonl").read_bytes() == before


def test_what_a_build_leaves_out_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    textcaps_val(tmp_path / "data")
    folder = corpus_folder(tmp_path / "data", "text_caps", "val", tmp_path / "cache")
    assert "dropped 1: image file missing" in capsys.readouterr().err
    assert CorpusReader(folder).manifest.dropped == 1


def test_a_repeated_phrase_is_two_phrases() -> None:
    boxes = (Box(0, 0, 20, 20), Box(60, 60, 90, 90))
    turn = Turn("detection", regions=tuple(Region((box,), ("a man",)) for box in boxes))
    question = Question("0", turn, 100, 100, "", "", "c", 0, True)
    answer = "<p>a man</p> {<0><0><20><20>} <p>a man</p> {<60><60><90><90>}"
    assert score_phrases([question], [Prediction(answer)]).overall["phrase_recall"] == 1.0


def test_the_correct_choice_is_the_one_of_the_corpus() -> None:
    turn = Turn("vqa", "what?", ("cat",), choices=("dog", "cat"))
    question = Question("0", turn, 100, 100, "", "", "c", 0, True, {"choice": "dog"})
    assert [score_choice([question], [Prediction(one)]).overall["accuracy"] for one in ("dog", "cat")] == [1.0, 0.0]


def test_the_questions_of_an_image_stay_together_and_shares_have_similar_costs(world: World) -> None:
    questions = questions_of(CorpusReader(world.train / "photographs"), Asking())
    for ranks in (1, 2, 3, 7):
        shares = divide(questions, ranks)
        assert sorted(q.id for share in shares for q in share) == sorted(q.id for q in questions)
        owners = Counter(sample for share in shares for sample in {q.sample for q in share})
        assert set(owners.values()) == {1}
        costs = [sum(map(_cost, share)) for share in shares]
        assert max(costs) <= 1.1 * min(costs)


def test_each_expression_of_an_object_is_a_question_with_its_own_id(tmp_path: Path) -> None:
    spec = BENCHMARKS["refcoco_val"]
    questions = questions_of(CorpusReader(corpus_for(spec, tmp_path / "corpus")), Asking("refer"))
    assert len(questions) == 5 * 2 * 2 and len({question.id for question in questions}) == 20
    assert questions[0].asked == "[refer] give me the location of the dog 00"


def test_an_image_is_encoded_once_for_all_its_questions(export: str, data: Path, tmp_path: Path) -> None:
    from minigptv2.predict.predictor import load_predictor

    predictor, encoded = load_predictor(export), []
    predictor.model.vision_encoder.register_forward_hook(
        lambda module, args, kwargs, output: encoded.append(kwargs["pixel_values"].shape[0]), with_kwargs=True
    )
    spec = BENCHMARKS["iconqa"]
    evaluate_benchmark(predictor, spec, data / "iconqa/val", tmp_path / "out", Settings(batch_size=2))
    assert sum(encoded) == 5  # images, with 10 questions of 5 choices each


def test_tables_and_page_show_the_predictions(plain: Path) -> None:
    results = {one["benchmark"]: one for one in json.loads((plain / "results.json").read_text())}
    assert set(results) == {"okvqa", "iconqa", *(f"toy_{task}/{task}" for task in TASKS)}
    markdown, page = (plain / "results.md").read_text(), (plain / "page.html").read_text()
    for name, one in results.items():
        rows = [json.loads(line) for line in (plain / name / "predictions.jsonl").open()]
        mean = 100 * sum(row["score"] for row in rows) / len(rows)
        assert one["value"] == pytest.approx(mean) and one["questions"] == len(rows)
        assert one["interval"][0] <= one["value"] <= one["interval"][1]
        assert f"| {one['title']} | {one['protocol']} | {one['metric']} | {one['value']:.2f} |" in markdown
        assert f"{one['title']}: {one['value']:.2f}</h2>" in page.replace("&#x27;", "'")
        for members in one["groups"].values():
            assert sum(member["questions"] for member in members.values()) == len(rows)
    assert "56.9 / 57.8 (arXiv:2310.09478" in markdown
    assert {"well_formed", "mean_iou"} <= set(results["toy_refer/refer"]["figures"])
    assert "size" in results["toy_refer/refer"]["groups"] and "answer" in results["toy_vqa/vqa"]["groups"]
    assert page.count("<img src='data:image/jpeg;base64,") == 2 * 2 * len(results)
    assert not re.search(r"(src|href)='(?!data:|#)", page)  # the page loads no other file


def test_the_worst_samples_on_the_page_are_the_worst(tmp_path: Path) -> None:
    from minigptv2.evaluate.html import pick

    spec = BENCHMARKS["gqa"]
    corpus = corpus_for(spec, tmp_path / "corpus")
    oracle = Oracle(spec, corpus, say=lambda truth: "wrong" if truth == "2" else truth)
    result = evaluate_benchmark(oracle, spec, corpus, tmp_path / "out", Settings())  # type: ignore[arg-type]
    assert result is not None
    wrong = {i for i, question in enumerate(result.questions) if question.answer == "2"}
    worst, random = pick(result, len(wrong), seed=0)
    assert set(worst) == wrong and len(random) == len(wrong) != 0


def test_compare_finds_changed_answers_and_their_significance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = BENCHMARKS["gqa"]
    corpus = corpus_for(spec, tmp_path / "corpus")
    for name, wrong in (("a", ("2", "ski")), ("b", ("shirt",))):
        oracle = Oracle(spec, corpus, say=lambda truth, wrong=wrong: "wrong" if truth in wrong else truth)  # type: ignore[misc]
        evaluate_benchmark(oracle, spec, corpus, tmp_path / name / "gqa", Settings())  # type: ignore[arg-type]
    assert cli(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    (found,) = json.loads((tmp_path / "c.json").read_text())
    assert (len(found["gained"]), len(found["lost"]), found["questions"]) == (4, 2, 10)
    assert found["difference"]["mean"] == pytest.approx(0.2)
    assert {row["truth"] for row in found["gained"]} == {"2", "ski"}
    assert all(row["a"] == "wrong" and row["b"] == row["truth"] for row in found["gained"])
    assert "gqa" in printed and "+20.00" in printed and "not significant" in printed
    assert cli(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [found]
    shutil.rmtree(tmp_path / "b")
    assert cli(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 3
    assert "nothing to compare" in capsys.readouterr().err
