"""Tests every benchmark spec: perfect answers reach the best score, damaged answers never raise, sources exist."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest

from minigptv2.cli import main as cli
from minigptv2.corpora.sources import CORPORA, toy
from minigptv2.errors import ConfigError, DataError
from minigptv2.evaluate.benchmarks import BENCHMARKS, chosen
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import questions_of
from minigptv2.evaluate.rules import RULES, Prediction
from minigptv2.evaluate.runner import Settings, asking_of, evaluate_benchmark
from minigptv2.evaluate.tables import summary
from minigptv2.shards.reader import CorpusReader
from minigptv2.tasks import TASKS
from tests.evaluate.corpora import Oracle, corpus_for

ALL = [spec.under(name) for spec in BENCHMARKS.values() for name in spec.protocols]
SPECS = pytest.mark.parametrize("spec", ALL, ids=lambda spec: f"{spec.name}-{spec.protocol}")
NUM_DAMAGED = 10_000


@SPECS
def test_perfect_answers_reach_the_best_score(spec: Benchmark, tmp_path: Path) -> None:
    needs_lemmas(spec)
    corpus = corpus_for(spec, tmp_path / "corpus")
    result = evaluate_benchmark(Oracle(spec, corpus), spec, corpus, tmp_path / "out", Settings(batch_size=3))  # type: ignore[arg-type]
    assert result is not None
    found = summary(result)
    assert found["value"] == pytest.approx(spec.best) and spec.best in (100.0, 1000.0)
    assert found["interval"] == pytest.approx([spec.best] * 2)
    assert found["figures"]["well_formed"] == 100.0
    for name in ("auroc", "f1", "phrase_recall", "accuracy_exact"):
        assert found["figures"].get(name, 100.0) == 100.0
    assert found["figures"].get("chair_i", 0.0) == 0.0


@SPECS
def test_empty_answers_reach_the_worst_score(spec: Benchmark, tmp_path: Path) -> None:
    needs_lemmas(spec)
    corpus = corpus_for(spec, tmp_path / "corpus")
    questions = questions_of(CorpusReader(corpus), asking_of(spec))
    scored = spec.scoring.score(questions, [Prediction("", {"yes": 0.5, "no": 0.5}) for _ in questions])
    worst = {"chair": 1.0, "chair_repaired": 1.0, "pope": 0.5, "hateful": 0.5}  # POPE reads "" as yes
    assert scored.overall[spec.scoring.headline] == pytest.approx(worst.get(spec.scoring.name, 0.0))
    assert scored.overall["well_formed"] == (1.0 if spec.scoring.choices is not None else 0.0)


def needs_lemmas(spec: Benchmark) -> None:
    if spec.scoring.check is not None:
        pytest.importorskip("simplemma", reason="pip install 'minigptv2[metrics]'")


def test_ten_thousand_damaged_answers_never_raise(tmp_path: Path) -> None:
    random, num_scored = Random(0), 0
    with_packages = [spec for spec in ALL if spec.scoring.check is None]
    one_of_each = list({spec.scoring.name + spec.task: spec for spec in with_packages}.values())
    for spec in one_of_each:
        folder = tmp_path / spec.name / spec.protocol
        questions = questions_of(CorpusReader(corpus_for(spec, folder)), asking_of(spec))
        for _ in range(-(-NUM_DAMAGED // len(one_of_each) // len(questions))):
            predictions = [
                Prediction(damaged(q.answer, random), {"yes": random.random(), "no": 1.0}) for q in questions
            ]
            scored = spec.scoring.score(questions, predictions)
            num_scored += len(predictions)
            for metrics in scored.each:
                assert 0.0 <= metrics[spec.scoring.headline] <= spec.scoring.best + 1e-9
            assert all(math.isfinite(value) for value in scored.overall.values())
    assert num_scored >= NUM_DAMAGED


def damaged(answer: str, random: Random) -> str:
    pieces = "{<>}</p><p><delim>{<1><2><3><4>}{<999><0><-1><1e9>}\x00\ud800\u202e日\n\t .,'\"|||-LRB-%s{query}"
    text = list(answer)
    for _ in range(random.randrange(1, 8)):
        place = random.randrange(len(text) + 1)
        kind = random.randrange(4)
        if kind == 0:
            del text[place : place + random.randrange(1, 6)]
        elif kind == 1:
            start = random.randrange(len(pieces))
            text[place:place] = pieces[start : start + random.randrange(1, 24)]
        elif kind == 2:
            text[place:place] = text[: random.randrange(len(text) + 1)]
        else:
            random.shuffle(text)
    return "".join(text)[:2000]


@SPECS
def test_a_spec_has_a_source_a_protocol_and_a_slot(spec: Benchmark) -> None:
    assert spec.chosen.rule in RULES and spec.source and spec.title
    assert spec.scoring.definition
    assert ("{query}" in spec.wording) == (TASKS[spec.task].query != "none")
    assert spec.corpus in CORPORA and spec.split in CORPORA[spec.corpus].expected
    assert spec.task in CORPORA[spec.corpus].tasks


def test_the_list_prints_every_spec_with_its_published_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    for spec in BENCHMARKS.values():
        assert spec.name in printed and spec.source in printed
        assert all(f"{one.value:g}" in printed for one in spec.results)
        assert all(f"{name}{'*' * (name == spec.protocol)}" in printed for name in spec.protocols)
        assert all(spec.under(name).wording in printed for name in spec.protocols)
    assert "is this statement true or false? {query}" in printed
    assert cli(["evaluate", "--list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: len(row["published"]) for name, row in listed.items()} == {
        name: len(row.results) for name, row in BENCHMARKS.items()
    }
    assert all(row["prompt"] for row in listed.values())


def test_an_unknown_benchmark_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown benchmark 'okvq'; did you mean 'okvqa'"):
        chosen(["okvq"])
    assert [spec.name for spec in chosen(["gqa", "okvqa", "gqa"])] == ["gqa", "okvqa"]
    assert len(chosen(["all"])) == len(BENCHMARKS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmark", "okvqa", "--data", ".", "--shards", "."], "--shards and --corpus"),
        (["--benchmark", "okvqa", "--data", "/nowhere"], "--data /nowhere: there is no such folder"),
        (["--shards", ".", "--corpus", "../toy_vqa"], "must be the name of a folder"),
    ],
)
def test_invalid_arguments_are_refused_before_a_model_is_loaded(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["evaluate", "--model", "/nowhere", *words]) == ConfigError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("question", ["  ", "\udcff"])
def test_an_empty_question_is_refused(question: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(next(iter(toy.samples("vqa", 1, Path(), "val"))).image or b"")
    assert cli(["ask", "--model", "/nowhere", str(tmp_path / "a.png"), question]) == DataError.exit_code
    assert "the question is" in capsys.readouterr().err
