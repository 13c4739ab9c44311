"""Tests rows from original files to scores: VizWiz, Hateful Memes, OK-VQA, A-OKVQA, Flickr30k, RefCOCO and IconQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigptv2.errors import ConfigError, DataError
from minigptv2.evaluate.benchmarks import BENCHMARKS
from minigptv2.evaluate.prompts import HATEFUL_MEMES, VIZWIZ
from minigptv2.evaluate.protocols import Benchmark
from minigptv2.evaluate.questions import corpus_folder, questions_of
from minigptv2.evaluate.runner import Settings, asking_of
from minigptv2.evaluate.suite import Job, evaluate_all
from minigptv2.predict.requests import Case, Decoding, Reply, Request, Score
from minigptv2.prompt import PromptStyle
from minigptv2.shards.reader import CorpusReader
from tests.evaluate.corpora import Oracle, corpus_for

SHORT = "[vqa] Based on the image, respond to this question with a short answer: {query}"


def raw_file(root: Path, name: str, document: Any) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(document, tuple):
        Image.new("RGB", document, (90, 120, 40)).save(file)
    else:
        file.write_text(document if isinstance(document, str) else json.dumps(document))


def built(spec: Benchmark, root: Path) -> Path:
    return corpus_folder(root, spec.corpus, spec.split, root / "cache")


class Says:
    """A predictor that answers every question with one text, and gives choices the losses of their tokens."""

    identity, style = "says", PromptStyle.TRAINED

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[str] = []

    prepare = Oracle.prepare
    prompt_ids = Oracle.prompt_ids

    def reply(self, requests: list[Request], decoding: Decoding, **_: Any) -> list[Reply]:
        self.asked += [request.question for request in requests]
        return [Reply(self.text, 1) for _ in requests]

    def score(self, cases: list[Case], **_: Any) -> Any:
        return [Score(4, (7, 8), (0.25, 0.5 if case.turns[0][1] == "yes" else 0.75)) for case in cases]


def values(spec: Benchmark, root: Path, text: str, output: Path) -> tuple[dict[str, float], Says, dict[str, Any]]:
    """Accuracy by question id, the predictor, and the summary."""
    predictor: Any = Says(text)
    (one,) = evaluate_all(predictor, [Job(spec, built(spec, root))], output, Settings(), samples=0)
    rows = [json.loads(line) for line in (output / spec.name / "predictions.jsonl").open()]
    return {row["id"].split("/")[1]: row["score"] for row in rows}, predictor, one


def test_vizwiz_counts_exact_matches_by_three(tmp_path: Path) -> None:
    people = {"a.jpg": ["dog"] * 2 + ["cat"] * 8, "b.jpg": ["the dog"] * 5 + ["hound"] * 5}
    rows = [
        {"image": image, "question": "What is this?", "answers": [{"answer": one} for one in given], "answerable": 1}
        for image, given in people.items()
    ]
    raw_file(tmp_path, "vizwiz/val.json", rows)
    for image in people:
        raw_file(tmp_path, f"vizwiz/val/{image}", (20, 20))
    spec = BENCHMARKS["vizwiz"]
    found, predictor, _ = values(spec, tmp_path, "dog", tmp_path / "out/a")
    assert set(predictor.asked) == {VIZWIZ.replace("{query}", "What is this?")}
    assert found == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert values(spec, tmp_path, "The Dog", tmp_path / "out/b")[0] == {"a": 0.0, "b": 1.0}
    official, predictor, _ = values(spec.under("official"), tmp_path, "dog", tmp_path / "out/c")
    assert official["a"] == pytest.approx(0.6) and official["b"] == 1.0
    assert set(predictor.asked) == {SHORT.replace("{query}", "What is this?")}


@pytest.mark.parametrize(
    ("text", "published", "official"),
    [("no", 1, 1), ("NO", 1, 0), (" no ", 1, 1), ("No.", 0, 1), ("not hateful", 0, 1), ("0", 0, 0), ("", 0, 0)],
)
def test_hateful_memes_takes_only_yes_and_no(text: str, published: int, official: int, tmp_path: Path) -> None:
    row = {"id": 1, "img": "img/1.png", "label": 0, "text": "have  a nice\nday"}
    raw_file(tmp_path, "hateful_memes/dev_seen.jsonl", json.dumps(row) + "\n")
    raw_file(tmp_path, "hateful_memes/img/1.png", (20, 20))
    spec = BENCHMARKS["hateful_memes"]
    found, predictor, one = values(spec, tmp_path, text, tmp_path / "out/a")
    assert predictor.asked == [HATEFUL_MEMES.replace("{query}", "have  a nice\nday")]
    assert list(found.values()) == [published]
    assert one["figures"]["auroc"] is None and one["intervals"] == {}
    assert "NaN" not in (tmp_path / "out/a/results.json").read_text()
    assert list(values(spec.under("official"), tmp_path, text, tmp_path / "out/b")[0].values()) == [official]


def okvqa_files(root: Path, *, raw: bool) -> None:
    given = [("racing", "race")] * 6 + [("riding", "ride")] * 4
    answers = [{"answer": stem, **({"raw_answer": text} if raw else {})} for text, stem in given]
    note = {"image_id": 1, "question_id": 15, "answer_type": "other", "answers": answers}
    raw_file(root, "okvqa/mscoco_val2014_annotations.json", {"annotations": [note]})
    question = {"image_id": 1, "question_id": 15, "question": "What are they doing?"}
    raw_file(root, "okvqa/OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    raw_file(root, "coco/val2014/COCO_val2014_000000000001.jpg", (20, 20))


@pytest.mark.parametrize(
    ("text", "published", "official", "as_written"),
    [("race", 1.0, 1.0, 0.0), ("racing", 0.0, 1.0, 1.0), ("Rides", 0.0, 1.0, 0.0), ("riding", 0.0, 1.0, 1.0)],
)
def test_ok_vqa_compares_stems_and_lemmas(
    text: str, published: float, official: float, as_written: float, tmp_path: Path
) -> None:
    okvqa_files(tmp_path, raw=True)
    spec = BENCHMARKS["okvqa"]
    found, _, one = values(spec, tmp_path, text, tmp_path / "out/a")
    assert list(found.values()) == [published] and one["figures"]["accuracy_raw"] == 100 * as_written
    assert one["notes"] == []
    pytest.importorskip("simplemma", reason="pip install 'minigptv2[metrics]'")
    found, _, one = values(spec.under("official"), tmp_path, text, tmp_path / "out/b")
    assert list(found.values()) == [official] and one["figures"]["accuracy_raw"] == 100 * as_written
    assert "simplemma" in one["scoring"]


def test_ok_vqa_without_raw_answers_is_scored_as_before_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also shards that an older version built: their answers are the stems."""
    okvqa_files(tmp_path, raw=False)
    found, _, one = values(BENCHMARKS["okvqa"], tmp_path, "race", tmp_path / "out")
    assert list(found.values()) == [1.0] and "accuracy_raw" not in one["figures"]
    assert "minigptv2 shards build ok_vqa --split val" in one["notes"][0]
    assert one["notes"][0] in capsys.readouterr().err and one["notes"][0] in (tmp_path / "out/results.md").read_text()


def test_the_official_protocol_of_ok_vqa_needs_its_lemmatizer_before_a_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    okvqa_files(tmp_path, raw=True)
    spec = BENCHMARKS["okvqa"].under("official")
    predictor: Any = Says("race")
    with pytest.raises(ConfigError, match=r"minigptv2\[metrics\]"):
        evaluate_all(predictor, [Job(spec, built(spec, tmp_path))], tmp_path / "out", Settings())
    assert predictor.asked == []


def test_difficult_direct_answers_of_a_okvqa_are_left_out_and_its_choices_are_not(tmp_path: Path) -> None:
    entries = [
        {"image_id": 4, "question_id": name, "question": f"Question {name}?", "choices": ["a cup", "a pen"],
         "correct_choice_idx": 0, "direct_answers": ["cup"] * 10, "difficult_direct_answer": name == "hard"}
        for name in ("easy", "hard")
    ]  # fmt: skip
    raw_file(tmp_path, "aokvqa/aokvqa_v1p0_val.json", entries)
    raw_file(tmp_path, "coco/val2017/000000000004.jpg", (20, 20))
    for name, asked in (("aokvqa", ["Question easy?"]), ("aokvqa_choice", ["Question easy?", "Question hard?"])):
        for protocol in ("published", "official"):
            spec = BENCHMARKS[name].under(protocol)
            questions = questions_of(CorpusReader(built(spec, tmp_path)), asking_of(spec))
            assert [question.turn.question for question in questions] == asked
    assert values(BENCHMARKS["aokvqa"], tmp_path, "cup", tmp_path / "out")[2]["notes"] == []


def test_every_boxed_mention_of_flickr30k_is_a_phrase(tmp_path: Path) -> None:
    boxes = {"1": (11, 11, 50, 90), "2": (61, 1, 80, 20)}
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, (a, b, c, d) in boxes.items()
    )
    man, ball = "[/EN#1/people A man]", "[/EN#2/other a ball]"
    raw_file(tmp_path, "flickr30k/Annotations/10.xml", f"<annotation><filename>10.jpg</filename>{objects}</annotation>")
    raw_file(tmp_path, "flickr30k/Sentences/10.txt", f"{man} throws {ball} .\n{man} waits .\n{man} has {ball} .\n")
    raw_file(tmp_path, "flickr30k/test.txt", "10\n")
    raw_file(tmp_path, "flickr30k/flickr30k-images/10.jpg", (100, 100))
    spec = BENCHMARKS["flickr30k_detection"]
    _, predictor, one = values(spec, tmp_path, "<p>A man</p> {<10><10><50><90>}", tmp_path / "out")
    assert predictor.asked.count("[detection] A man") == 3 and predictor.asked.count("[detection] a ball") == 2
    assert one["questions"] == one["figures"]["phrases"] == 5 and one["value"] == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("text", "published", "official"),
    [
        ("{<10><20><60><80>}", 1, 1),
        ("{<10> <20> <60> <80>}", 1, 0),
        ("{<10><20><60><80>} left", 1, 1),
        ("{<10><20><60><80>} the 2 cups", 0, 1),
        ("{<10><20><60><80>}<delim>{<1><1><2><2>}", 0, 1),
        ("it is {<10><20><60><80>}", 0, 1),
        ("{<10><20><60><110>}", 1, 0),
        ("", 0, 0),
    ],
)
def test_refcoco_reads_the_box_that_the_published_script_reads(
    text: str, published: int, official: int, tmp_path: Path
) -> None:
    row = {"img_id": "COCO_train2014_000000000009_0", "sents": "left one", "bbox": [10, 16, 50, 48], "height": 80,
           "width": 100}  # fmt: skip
    raw_file(tmp_path, "refcoco/refcoco_val.json", [row])
    raw_file(tmp_path, "coco/train2014/COCO_train2014_000000000009.jpg", (100, 80))
    spec = BENCHMARKS["refcoco_val"]
    found, predictor, _ = values(spec, tmp_path, text, tmp_path / "out/a")
    assert predictor.asked == ["[refer] give me the location of left one"] and list(found.values()) == [published]
    assert list(values(spec.under("official"), tmp_path, text, tmp_path / "out/b")[0].values()) == [official]


def test_iconqa_is_asked_on_the_validation_split(tmp_path: Path) -> None:
    entry = {"question": "What is it?", "choices": ["cat", "the big red cat"], "answer": 0, "ques_type": "choose_txt"}
    for split in ("val", "test"):
        raw_file(tmp_path, f"iconqa/{split}/choose_txt/7/data.json", {**entry, "question": f"What is in {split}?"})
        raw_file(tmp_path, f"iconqa/{split}/choose_txt/7/image.png", (20, 20))
    for protocol, split in (("published", "val"), ("official", "test")):
        spec = BENCHMARKS["iconqa"].under(protocol)
        (question,) = questions_of(CorpusReader(built(spec, tmp_path)), asking_of(spec))
        assert question.asked == SHORT.replace("{query}", f"What is in {split}?") and split in spec.title


def test_a_question_without_the_text_for_its_slot_is_refused(tmp_path: Path) -> None:
    spec = BENCHMARKS["hateful_memes"]
    with pytest.raises(DataError, match="the question needs 'text', which its source does not state. Build the corpus"):
        questions_of(CorpusReader(corpus_for(BENCHMARKS["gqa"], tmp_path / "corpus")), asking_of(spec))
