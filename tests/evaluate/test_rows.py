"""Tests every benchmark row under each protocol with at least 50 golden cases (`golden/rows`, made by `rows.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.evaluate.metrics.hallucination import ObjectList, coco_objects
from minigptv2.evaluate.metrics.lemmas import lemmatize
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import Question
from minigptv2.evaluate.rules import Prediction
from minigptv2.evaluate.runner import Settings, score_choices
from minigptv2.predict.requests import Request, Score
from minigptv2.record import Region, Turn
from tests.evaluate import cases, restated, rows

PEOPLE, LABEL = ("vqav2", "vizwiz", "aokvqa"), ("gqa", "vsr", "ocrvqa")
ALL = [spec.under(name) for spec in BENCHMARKS.values() for name in spec.protocols]
Case = dict[str, Any]


def golden(name: str) -> list[Case]:
    found: list[Case] = json.loads((rows.ROWS / f"{name}.json").read_text())
    assert len(found) >= 50
    return found


def file_of(spec: Benchmark) -> str:
    """The file of golden cases of a row. Captions have the cases of `cases.captions`."""
    if spec.name in rows.FILES:
        return spec.name
    groups = {"refer": "refer", "caption": "captions", "identify": "captions"}
    by_corpus = {"pope": "pope", "iconqa": "choice", "aok_vqa": "choice"}
    return groups.get(spec.task) or by_corpus.get(spec.corpus) or "phrases"


def turn_of(spec: Benchmark, case: Case) -> Turn:
    if spec.task == "refer":
        return Turn("refer", regions=(Region((Box(*case["box"]),), ("cup",)),))
    if spec.task == "detection":
        regions = tuple(Region(tuple(Box(*box) for box in boxes), (name,)) for name, boxes in case["phrases"])
        return Turn("detection", regions=regions)
    if spec.task == "grounding":
        caption, regions = "", []
        for name, boxes in case["phrases"]:
            span = (len(caption), len(caption) + len(name))
            regions.append(Region(tuple(Box(*box) for box in boxes), (name,), span))
            caption += f"{name} "
        return Turn("grounding", answers=(caption,), regions=tuple(regions))
    if spec.name in PEOPLE:
        return Turn("vqa", "what?", tuple(case["people"]))
    if spec.name == "okvqa":
        return Turn("vqa", "what?", tuple(case["raw"]), source={"answers": "|".join(case["stems"])})
    label = case["label"]
    return Turn("vqa", "what?", (("no", "yes")[label] if isinstance(label, int) else label,))


def questions(spec: Benchmark, given: Sequence[Case]) -> list[Question]:
    found = []
    for number, case in enumerate(given):
        turn = turn_of(spec, case)
        size = case.get("width", 100), case.get("height", 100)
        found.append(Question(str(number), turn, *size, "", "", spec.corpus, number, True, turn.source))
    return found


@pytest.mark.parametrize(
    "spec",
    [spec for spec in ALL if file_of(spec) not in ("captions", "choice", "chair")],
    ids=lambda spec: f"{spec.name}-{spec.protocol}",
)
def test_a_row_scores_every_golden_case_as_the_protocol_does(spec: Benchmark) -> None:
    name = file_of(spec)
    if spec.scoring.check is not None:
        pytest.importorskip("simplemma", reason="pip install 'minigptv2[metrics]'")
    given = [case for case in golden(name) if not case.get("difficult")]
    assert len(given) >= 50
    losses = {"yes": 0.5, "no": 1.0}
    predictions = [Prediction(case["answer"], losses) for case in given]
    scored = spec.scoring.score(questions(spec, given), predictions)
    headline = "found" if name == "phrases" else spec.scoring.headline
    for case, metrics in zip(given, scored.each, strict=True):
        assert metrics[headline] == pytest.approx(float(case[spec.protocol])), case
        if spec.name == "okvqa":
            assert metrics["accuracy_raw"] == pytest.approx(case["raw_accuracy"]), case


@pytest.mark.parametrize(
    "name", [name for name in rows.FILES if name not in ("okvqa", "vqav2", "gqa", "vsr", "ocrvqa", "vizwiz", "chair")]
)
def test_the_golden_cases_are_those_of_the_restated_rules(name: str) -> None:
    """The other files also need the official packages: `make test-metrics`."""
    assert json.loads(json.dumps(rows.FILES[name](Random(name)))) == golden(name)


@pytest.mark.parametrize("name", ["gqa", "vsr", "vizwiz"])
def test_the_published_values_are_those_of_the_restated_rules(name: str) -> None:
    rule = {
        "gqa": lambda case: restated.published_gqa(case["answer"], case["label"]),
        "vsr": lambda case: restated.published_vsr(case["answer"], case["label"]),
        "vizwiz": lambda case: restated.published_vizwiz(case["answer"], case["people"]),
    }[name]
    assert [rule(case) for case in golden(name)] == [case["published"] for case in golden(name)]


def test_the_protocols_of_a_row_differ_on_its_cases() -> None:
    for spec in BENCHMARKS.values():
        name = file_of(spec)
        rules = {spec.under(one).scoring.name for one in ("published", "official")}
        if len(rules) > 1 and name != "choice":
            assert any(case["published"] != case["official"] for case in golden(name)), spec.name


class Weighed:
    """A predictor that gives each choice the losses of its tokens."""

    def __init__(self, nats: dict[str, list[float]]) -> None:
        self._nats = nats

    def score(self, cases: list[Any], **_: Any) -> list[Score]:
        return [Score(9, (1,) * len(nats), tuple(nats)) for nats in (self._nats[one.turns[0][1]] for one in cases)]


@pytest.mark.parametrize(("row", "protocol"), [("iconqa", "published"), ("iconqa", "official")])
def test_a_choice_is_picked_by_the_sum_or_by_the_mean_of_its_losses(row: str, protocol: str) -> None:
    spec = BENCHMARKS[row].under(protocol)
    kind = spec.scoring.choice_loss
    assert kind == {"published": "sum", "official": "mean"}[protocol]
    for case in golden("choice"):
        predictor: Any = Weighed(dict(zip(case["choices"], case["nats"], strict=True)))
        (losses,) = score_choices(
            predictor,
            [Request("q", (Image.new("RGB", (2, 2)),))],
            [case["choices"]],
            Settings(),
            {},
            total=kind == "sum",
        )
        assert min(losses, key=lambda one: losses[one]) == case["choices"][case[kind]], case


def test_both_protocols_of_a_okvqa_choice_pick_by_the_sum() -> None:
    assert {BENCHMARKS["aokvqa_choice"].under(name).scoring.choice_loss for name in ("published", "official")} == {
        "sum"
    }


def test_a_row_of_chair_finds_the_objects_of_its_list() -> None:
    for name, listed in (("published", "official"), ("official", "official"), ("repaired", "repaired")):
        spec = BENCHMARKS["chair"].under(name)
        for case in golden("chair"):
            assert coco_objects(case["caption"], ObjectList(listed)) == case[name], case
            turn = Turn("caption", answers=("nothing",))
            question = Question("0", turn, 9, 9, "", "", "coco_chair", 0, True, {"objects": "person"})
            (metrics,) = spec.scoring.score([question], [Prediction(case["caption"])]).each
            assert metrics["objects"] == len(case[name])
            assert metrics["faithful"] == float(set(case[name]) <= {"person"})


@pytest.mark.parametrize(
    "spec",
    [spec for spec in ALL if file_of(spec) == "captions" and spec.name != "chair"],
    ids=lambda spec: f"{spec.name}-{spec.protocol}",
)
def test_a_row_of_captions_has_the_official_metrics(spec: Benchmark) -> None:
    answers, references = cases.captions(240)
    official = json.loads((rows.ROWS.parent / "captions.json").read_text())
    given = []
    for number, texts in enumerate(references):
        region = Region((Box(1, 1, 5, 5),), tuple(texts))
        turn = Turn(spec.task, answers=tuple(texts), regions=(region,))
        given.append(Question(str(number), turn, 9, 9, "", "", spec.corpus, number, True))
    scored = spec.scoring.score(given, [Prediction(answer) for answer in answers])
    for metric in ("cider", "bleu_4", "rouge_l"):
        assert [one[metric] for one in scored.each] == pytest.approx(official["each"][metric], abs=1e-6)
        assert scored.overall[metric] == pytest.approx(official["corpus"][metric], abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "lemmas"), [("Racing", "race"), ("two dogs!", "two dog!"), ("", ""), ("3.5", "3.5")]
)
def test_an_answer_is_lemmatized_word_by_word(answer: str, lemmas: str) -> None:
    pytest.importorskip("simplemma", reason="pip install 'minigptv2[metrics]'")
    assert lemmatize(answer) == lemmas


def test_every_row_has_golden_cases() -> None:
    assert {file_of(spec) for spec in ALL} == {*rows.FILES, "captions"}
    assert all((Path(rows.ROWS) / f"{name}.json").is_file() for name in rows.FILES)
