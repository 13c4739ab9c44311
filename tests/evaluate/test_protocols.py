"""Tests what a protocol decides: question, split, prompt style and rule, and what the tables state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minigptv2.cli import main as cli
from minigptv2.errors import ConfigError, DataError
from minigptv2.evaluate.benchmarks import BENCHMARKS, chosen
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.rules import RULES
from minigptv2.evaluate.runner import Settings, evaluate_benchmark
from minigptv2.evaluate.suite import Job, evaluate_all
from minigptv2.predict.predictor import Predictor, load_predictor
from minigptv2.predict.requests import Case, Decoding, Reply, Request
from minigptv2.prompt import PromptStyle
from tests.conftest import World
from tests.evaluate.corpora import Oracle, corpus_for
from tests.model.tiny import save_tiny_export

SHORT = "[vqa] Based on the image, respond to this question with a short answer: {query}"
REFER = "[refer] give me the location of {query}"
VIZWIZ = (
    "[vqa] The question is '{query}' Based on the image, answer the question with a single word or phrase. and reply "
    "'unanswerable' when the provided information is insufficient"
)
MEMES = "This is an image writting '{query}'. Is this image hateful? Answer yes or no. Answer:"
STATEMENT = "[vqa] Based on the image, is this statement true or false? {query}"
ROWS = [
    *((name, REFER, split, REFER, split) for name, split in (
        ("refcoco_val", "val"), ("refcoco_testA", "testA"), ("refcoco_plus_testB", "testB"),
        ("refcocog_test", "test"))),
    ("okvqa", SHORT, "val", SHORT, "val"),
    ("gqa", SHORT, "testdev", SHORT, "testdev"),
    ("vsr", STATEMENT, "test", STATEMENT, "test"),
    ("iconqa", SHORT, "val", SHORT, "test"),
    ("vizwiz", VIZWIZ, "val", SHORT, "val"),
    ("hateful_memes", MEMES, "dev_seen", SHORT, "dev_seen"),
]  # fmt: skip
"""Rows with a published figure: published prompt and split, official prompt and split."""


@pytest.mark.parametrize(("name", "published", "published_split", "official", "official_split"), ROWS)
def test_a_row_with_a_published_figure_asks_the_published_question(
    name: str, published: str, published_split: str, official: str, official_split: str
) -> None:
    spec = BENCHMARKS[name]
    assert spec.protocol == "published" and spec.results
    assert (spec.wording, spec.split) == (published, published_split)
    assert spec.style(None) is PromptStyle.PUBLISHED
    other = spec.under("official")
    assert (other.wording, other.split) == (official, official_split)
    assert other.style(None) is PromptStyle.TRAINED


def test_every_row_has_both_protocols_and_the_default_follows_the_published_figure() -> None:
    for spec in BENCHMARKS.values():
        assert set(spec.protocols) >= {"published", "official"}
        assert spec.protocol == ("published" if spec.results else "official"), spec.name
    assert {name for name, spec in BENCHMARKS.items() if spec.results} >= {row[0] for row in ROWS}
    assert "repaired" in BENCHMARKS["chair"].protocols


@pytest.mark.parametrize(
    ("words", "protocols"),
    [
        ([], ["published", "official"]),
        (["official"], ["official", "official"]),
        (["published"], ["published", "published"]),
        (["okvqa=official"], ["official", "official"]),
        (["published", "okvqa=official"], ["official", "published"]),
    ],
)
def test_a_protocol_is_chosen_for_all_benchmarks_or_for_one(words: list[str], protocols: list[str]) -> None:
    assert [spec.protocol for spec in chosen(["okvqa", "vqav2"], words)] == protocols


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["publishd"], "okvqa has no protocol 'publishd'; it has published and official"),
        (["repaired"], "okvqa has no protocol 'repaired'"),
        (["published", "official"], "one protocol for all benchmarks, got published, official"),
        (["gqa=official"], "gqa is not one of --benchmark okvqa"),
        (["gqu=official"], "unknown benchmark 'gqu'; did you mean 'gqa'"),
        (["okvqa="], "okvqa has no protocol ''"),
    ],
)
def test_an_impossible_protocol_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(["okvqa"], words)


def measured(spec: Benchmark, folder: Path, style: PromptStyle | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """The summary of an evaluation with true answers, and the texts that it printed and wrote."""
    corpus = corpus_for(spec, folder / "corpus")
    predictor: Any = Oracle(spec, corpus)
    (one,) = evaluate_all(predictor, [Job(spec, corpus)], folder / "out", Settings(style=style), samples=1)
    return one, {name: (folder / "out" / name).read_text() for name in ("results.json", "results.md", "page.html")}


@pytest.mark.parametrize("row", [name for name, spec in BENCHMARKS.items() if spec.results and name != "okvqa"])
def test_a_published_figure_is_shown_only_beside_the_published_protocol(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = BENCHMARKS[row]
    figures = " / ".join(f"{one.value:g}" for one in spec.results)
    cases = (
        ("published", None, "published"),
        ("published", PromptStyle.TRAINED, "trained"),
        ("official", None, "trained"),
        ("official", PromptStyle.PUBLISHED, "published"),
    )
    for number, (protocol, given, style) in enumerate(cases):
        one, written = measured(spec.under(protocol), tmp_path / str(number), given)
        written["printed"] = capsys.readouterr().out
        assert (one["protocol"], one["prompt_style"]) == (protocol, style)
        assert one["prompt"] == spec.under(protocol).wording and one["split"] == spec.under(protocol).split
        assert one["scoring"] == RULES[one["rule"]].definition
        shown = number == 0
        assert len(one["published"]) == (2 if shown else 0)
        assert one["published_not_shown"] == ("" if shown else f"protocol {protocol}, prompt style {style}")
        for file, text in written.items():
            assert protocol in text and f"{style} prompt style" in text or file in ("results.json", "results.md")
            assert (figures in text) == (shown and file != "results.json"), (file, protocol, style)
            prompt = one["prompt"].replace("'", "&#x27;") if file == "page.html" else one["prompt"]
            assert prompt in text
        assert json.loads(written["results.json"])[0] == one


def test_a_row_without_a_published_figure_shows_none(tmp_path: Path) -> None:
    one, written = measured(BENCHMARKS["vqav2"], tmp_path)
    assert one["published"] == [] and one["published_not_shown"] == "" and "| none |" in written["results.md"]


def test_the_list_prints_both_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    for text in (VIZWIZ, MEMES, STATEMENT, "  published*", "  official ", "  published, official*", "  repaired"):
        assert text in printed
    assert "iconqa val, accuracy by the rule choice_sum" in printed
    assert "iconqa test, accuracy by the rule choice_mean" in printed
    assert cli(["evaluate", "--list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["vizwiz"]["default"] == "published" and set(listed["chair"]["protocols"]) == {
        "published", "official", "repaired"}  # fmt: skip
    assert listed["vizwiz"]["protocols"]["published"]["prompt"] == VIZWIZ


def test_two_protocols_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = BENCHMARKS["gqa"]
    corpus = corpus_for(spec, tmp_path / "corpus")
    for name, protocol in (("a", "published"), ("b", "official")):
        oracle: Any = Oracle(spec, corpus)
        evaluate_benchmark(oracle, spec.under(protocol), corpus, tmp_path / name / "gqa", Settings())
    assert cli(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == DataError.exit_code
    assert "under the protocol published and" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tiny(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_export(tmp_path_factory.mktemp("tiny"), world.tokenizer_folder, seed=1))


@pytest.mark.parametrize("style", PromptStyle)
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("turns", [1, 2])
def test_a_scored_answer_follows_the_prompt_of_its_style(
    tiny: str, style: PromptStyle, images: int, turns: int
) -> None:
    predictor = load_predictor(tiny, style=style)
    history = (("[vqa] what?", "red"),) * (turns - 1)
    pictures = tuple(Image.new("RGB", (8, 8)) for _ in range(images))
    prompt = predictor.prompt_ids(Request("[vqa] where?", pictures, history), Decoding(4))
    example = predictor._example(Case((*history, ("[vqa] where?", "on the left")), pictures))
    answer = [*predictor.tokenizer.encode("on the left"), predictor.tokenizer.eos_id]
    assert example.input_ids.tolist() == [*prompt.tolist(), *answer]
    supervised = example.input_ids[example.labels != -100].tolist()
    assert supervised == [*([*predictor.tokenizer.encode("red"), predictor.tokenizer.eos_id] * (turns - 1)), *answer]
    bos = predictor.tokenizer.bos_id
    assert np.flatnonzero(example.input_ids == bos).tolist()[:2] == [0, 1] or style is PromptStyle.TRAINED


@pytest.mark.parametrize("row", ["iconqa", "aokvqa_choice", "hateful_memes"])
@pytest.mark.parametrize("protocol", ["published", "official"])
@pytest.mark.parametrize("given", [None, *PromptStyle])
def test_weighed_choices_have_the_prompt_style(
    tiny: str, row: str, protocol: str, given: PromptStyle | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed, asked = [], []
    score, reply = Predictor.score, Predictor.reply

    def recorded(self: Predictor, cases: list[Case], **options: Any) -> Any:
        weighed.extend(self._example(case).input_ids.tolist() for case in cases)
        return score(self, cases, **options)

    def replied(self: Predictor, requests: list[Request], decoding: Decoding, **options: Any) -> list[Reply]:
        asked.extend(self.prompt_ids(request, decoding).tolist() for request in requests)
        return reply(self, requests, decoding, **options)

    monkeypatch.setattr(Predictor, "score", recorded)
    monkeypatch.setattr(Predictor, "reply", replied)
    spec = BENCHMARKS[row].under(protocol)
    corpus = corpus_for(spec, tmp_path / "corpus")
    predictor = load_predictor(tiny)
    evaluate_benchmark(predictor, spec, corpus, tmp_path / "out", Settings(limit=1, style=given))
    published = given is PromptStyle.PUBLISHED or given is None and protocol == "published"
    bos = predictor.tokenizer.bos_id
    assert weighed and all((ids[:2] == [bos, bos]) == published for ids in [*weighed, *asked])
    if asked:
        assert all(any(ids[: len(prompt)] == prompt for prompt in asked) for ids in weighed)
