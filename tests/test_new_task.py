"""Defines one more task here and takes it from a record to the chat page, without a change in another file."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigptv2.boxes import Box
from minigptv2.cli import main as cli
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.errors import DataError
from minigptv2.evaluate.benchmarks import heldout_spec
from minigptv2.evaluate.runner import Settings, evaluate_benchmark
from minigptv2.heldout.pictures import draw_question
from minigptv2.heldout.samples import load_heldout
from minigptv2.model.backbones import vision_spec
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Region, Turn, from_json, to_json
from minigptv2.serve.config import Limits
from minigptv2.serve.page import page_settings
from minigptv2.shards.reader import CorpusReader
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tasks import TASKS, Pick, RenderedTurn, Task, TurnShape, render_turn, task_id, task_of, validate
from minigptv2.tokenizer import Tokenizer
from tests.corpora.miniatures.files import jpeg, lines, put
from tests.corpora.own_data import HERE, built
from tests.evaluate.corpora import HEIGHT, WIDTH, Oracle, encoded_image
from tests.model.tiny import ALL_PARTS, tiny_config

NUM_SAMPLES = 5


class CountTask(Task):
    """How many objects of a name there are: the answer is a number, scored by its distance from the truth."""

    name = "count"
    identifier = "[count]"
    instructions = ("how many {query} are there?", "count {query}")
    headline = "closeness"
    max_new_tokens = 8
    shape = TurnShape(answers=True, regions="one")
    query = "phrase"
    answer = "text"

    def render(self, turn: Turn, width: int, height: int, pick: Pick) -> RenderedTurn:
        phrase, answer = pick(turn.regions[0].phrases), pick(turn.answers)
        return RenderedTurn(self.name, self.ask(phrase, pick(self.instructions)), answer)

    def score(self, turn: Turn, text: str, width: int, height: int) -> dict[str, float]:
        if not text.isdecimal():
            return {"closeness": 0.0, "well_formed": 0.0}
        return {"closeness": 1 / (1 + abs(int(text) - int(turn.answers[0]))), "well_formed": 1.0}


@pytest.fixture(autouse=True)
def count_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    task = CountTask()
    monkeypatch.setitem(TASKS, task.name, task)
    return task


def record(number: int) -> Record:
    region = Region((Box(10, 10, 90, 60),), ("dogs", "dogs on grass"))
    return Record((Turn("count", answers=(str(number),), regions=(region,)),), WIDTH, HEIGHT, {"id": f"c{number}"})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    samples = [Sample(f"c{number}", record(number), encoded_image(number), "png") for number in range(NUM_SAMPLES)]
    write_corpus(samples, tmp_path / "shards" / "counts", "counts", samples_per_shard=3)
    return tmp_path / "shards" / "counts"


def test_a_record_of_the_task_is_checked_by_its_shape_and_read_from_shards(corpus: Path) -> None:
    assert from_json(to_json(record(3)), "here") == record(3)
    validate(record(3), "here")
    with pytest.raises(DataError, match=r"here: turn 0 \(count\): has an empty answer"):
        validate(Record((Turn("count", regions=record(3).turns[0].regions),), WIDTH, HEIGHT), "here")
    reader = CorpusReader(corpus)
    assert [reader.record(number) for number in range(len(reader))] == [record(n) for n in range(NUM_SAMPLES)]
    assert reader.manifest.turns == {"count": NUM_SAMPLES}


@pytest.mark.parametrize("key", ["question", "phrase"])
def test_an_entry_of_own_data_keeps_the_answers_and_the_box(tmp_path: Path, key: str) -> None:
    put(tmp_path / "a.jpg", jpeg())
    entry = {"image": "a.jpg", "task": "count", key: "dogs", "boxes": [10, 12, 32, 24], "answer": ["2", "two"]}
    put(tmp_path / "my.jsonl", lines([entry]))
    (made,) = built(tmp_path, "my.jsonl")
    region = Region((Box(10, 12, 32, 24),), ("dogs",))
    assert made.turns == (Turn("count", answers=("2", "two"), regions=(region,)),)
    validate(made, "here")


def test_an_entry_of_own_data_without_an_answer_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "a.jpg", jpeg())
    entry = {"image": "a.jpg", "task": "count", "phrase": "dogs", "boxes": [10, 12, 32, 24]}
    put(tmp_path / "my.jsonl", lines([entry]))
    assert cli(["shards", "build", str(tmp_path / "my.jsonl"), "--output", str(tmp_path / "out"), *HERE]) != 0
    assert "task 'count' needs \"answer\"" in capsys.readouterr().err


def test_a_turn_of_the_task_becomes_a_prompt_with_the_tasks_id(tokenizer: Tokenizer) -> None:
    questions = {render_turn(record(3).turns[0], WIDTH, HEIGHT, Random(seed)).question for seed in range(50)}
    assert len(questions) == 4 and {task_of(question).name for question in questions} == {"count"}
    example = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=200).encode(record(3), Random(0))
    assert example is not None
    assert set(example.task_ids.tolist()) == {task_id("count")} == {list(TASKS).index("count")}


def test_a_training_step_reports_the_tasks_loss(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("corpora:\n  counts: {ratio: 1, task: count}\n")
    recipe = load_recipe(recipe_file)
    assert recipe == Recipe(corpora={"counts": CorpusShare(ratio=1, task="count")})
    row = vision_spec("tiny_vit")
    step = StepDataset(
        DataPlan(recipe, corpus.parent, seed=1),
        PromptEncoder(tokenizer, tokens_per_image=row.tokens_per_image, max_tokens=300),
        DataConfig(max_tokens=300, max_pack_tokens=900, num_workers=0),
        image_size=row.image_size,
        global_batch_size=8,
        micro_batch_size=4,
        rank=0,
        world_size=1,
    )[0]
    model = build_model(tiny_config(ALL_PARTS), tokenizer.vocab_size)

    def assign(parameter: torch.nn.Parameter, value: Any) -> None:
        with torch.no_grad():
            parameter.copy_(value())

    fill_weights(model, [], None, assign, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.projector.linear.weight.detach().clone()
    for batch in step.batches:
        out = model(**batch.inputs)
        assert out["task_tokens"][task_id("count")] == out["num_tokens"] > 0
        assert out["task_loss"][task_id("count")] > 0
        (out["loss_sum"] / out["num_tokens"]).backward()
    optimizer.step()
    assert not torch.equal(before, model.projector.linear.weight)


def test_the_task_is_evaluated_by_its_own_metric(corpus: Path, tmp_path: Path) -> None:
    spec = heldout_spec("counts", "count")
    assert spec.max_new_tokens == CountTask.max_new_tokens
    off_by_one: Any = Oracle(spec, corpus, say=lambda truth: str(int(truth) + 1))
    for predictor, value in ((Oracle(spec, corpus), 1.0), (off_by_one, 0.5)):
        result = evaluate_benchmark(predictor, spec, corpus, tmp_path / f"out{value}", Settings())  # type: ignore[arg-type]
        assert result is not None and len(result.questions) == 2 * NUM_SAMPLES  # one for each phrase
        assert result.scored.overall == {"closeness": value, "well_formed": 1.0, "score": value}
    items = load_heldout(corpus)
    assert [item.score(item.answer)["closeness"] for item in items] == [1.0] * NUM_SAMPLES
    assert draw_question(items[0], "3").size[0] >= WIDTH


def test_the_chat_page_has_a_button_for_the_task() -> None:
    service: Any = SimpleNamespace(name="test", limits=Limits())
    tasks = {task["identifier"]: task for task in page_settings(service, [])["tasks"]}
    assert list(tasks) == [task.identifier for task in TASKS.values() if task.identifier]
    assert tasks["[count]"]["label"] == "Count" and tasks["[count]"]["question"] == "[count] how many  are there"
    assert tasks["[vqa]"]["label"] == "Short answer"
