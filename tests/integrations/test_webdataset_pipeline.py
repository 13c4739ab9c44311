"""Our plan as a `webdataset.DataPipeline`: same samples, same order, over ranks, workers and resumes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import DataPlan
from minigptv2.errors import DataError
from minigptv2.integrations.webdataset_pipeline import PlanSource, encode_examples
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Turn, from_json
from minigptv2.shards.writer import Sample, write_corpus
from tests.conftest import World

RECIPE = Recipe(
    corpora={
        "toy_vqa": CorpusShare(ratio=2, task="vqa"),
        "toy_refer": CorpusShare(ratio=1, task="refer"),
        "toy_language": CorpusShare(ratio=1, task="language"),
    }
)
END = 100
"""More than two epochs of the smallest corpus."""


@pytest.fixture(scope="module")
def plan(world: World) -> DataPlan:
    return DataPlan(RECIPE, world.train, seed=3)


def ids(samples: Any) -> list[Any]:
    return [sample["__sample__"] for sample in samples]


def test_samples_are_those_of_the_plan_in_order(plan: DataPlan) -> None:
    found = list(webdataset.DataPipeline(PlanSource(plan, stop=END)))
    assert ids(found) == plan.samples(0, END)
    assert [sample["__position__"] for sample in found] == list(range(END))
    for sample in found:
        reader, number = plan.corpora[sample["__sample__"].corpus], sample["__sample__"].sample
        record = from_json(sample["json"], "")
        assert record == reader.record(number) and sample["__key__"] == reader.key(number)
        assert sample.get("jpg") == (reader.image(number) if record.has_image else None)
        assert Path(sample["__url__"]).is_file()


@pytest.mark.parametrize(("line", "most"), [({}, 1), ({"share_images": 2}, 2), ({"sample_by": "image"}, 4)])
def test_a_sample_of_a_corpus_by_turn_holds_its_turns(tmp_path: Path, line: dict[str, Any], most: int) -> None:
    sizes = (1, 4, 2)
    samples = [
        Sample(f"{n}", Record(tuple(Turn("language", f"{n} {m}", ("x",)) for m in range(size)), separate=True))
        for n, size in enumerate(sizes)
    ]
    write_corpus(samples, tmp_path / "asked", "asked")
    plan = DataPlan(Recipe(corpora={"asked": CorpusShare(ratio=1, epochs=1, **line)}), tmp_path, seed=0)
    records = [from_json(sample["json"], "") for sample in PlanSource(plan, rank=0, world_size=1).run()]
    assert max(len(record.turns) for record in records) == most
    asked = [turn.question for record in records for turn in record.turns]
    assert sorted(asked) == sorted(turn.question for sample in samples for turn in sample.record.turns)


@pytest.mark.parametrize("start", [0, 23])
def test_two_ranks_divide_the_plan_also_from_a_position(plan: DataPlan, start: int) -> None:
    by_rank = [list(PlanSource(plan, start=start, stop=END, rank=rank, world_size=2).run()) for rank in range(2)]
    together = [s for pair in itertools.zip_longest(*by_rank) for s in pair if s is not None]
    assert ids(together) == plan.samples(start, END - start)


def test_a_resumed_pipeline_continues_where_another_number_of_ranks_stopped(plan: DataPlan) -> None:
    before = [ids(itertools.islice(PlanSource(plan, rank=r, world_size=2).run(), 20)) for r in range(2)]
    after = ids(itertools.islice(PlanSource(plan, start=40).run(), 300))  # longer than one look-up of positions
    assert [s for pair in zip(*before, strict=True) for s in pair] + after == plan.samples(0, 340)


def test_workers_of_a_loader_divide_a_rank_s_samples(plan: DataPlan) -> None:
    source = PlanSource(plan, stop=END, rank=1, world_size=2)
    loader = DataLoader(webdataset.DataPipeline(source), batch_size=None, num_workers=2)
    assert [sample["__position__"] for sample in loader] == list(range(1, END, 2))


def test_a_plan_that_ends_ends_the_pipeline(world: World) -> None:
    recipe = Recipe(corpora={"toy_vqa": CorpusShare(ratio=1, task="vqa", epochs=1)})
    plan = DataPlan(recipe, world.train, seed=0)
    assert len(list(webdataset.DataPipeline(PlanSource(plan)))) == plan.length == 40


@pytest.mark.parametrize("cut", [0, 1])
def test_encoded_examples_are_those_of_training(plan: DataPlan, world: World, cut: int) -> None:
    """The longest of the samples loses `cut` tokens."""
    samples = plan.samples(0, 20)
    whole = PromptEncoder(world.tokenizer(), tokens_per_image=4, max_tokens=None)
    examples = [plan.encode(sample, whole) for sample in samples]
    longest = max(len(example) - 4 * example.num_images for example in examples)
    encoder = PromptEncoder(world.tokenizer(), tokens_per_image=4, max_tokens=longest - cut)
    found = list(webdataset.DataPipeline(PlanSource(plan, stop=20), encode_examples(plan, encoder)))
    for sample in found:
        example = plan.encode(sample["__sample__"], encoder)
        assert np.array_equal(sample["input_ids"], example.input_ids)
        assert np.array_equal(sample["labels"], example.labels)
        assert "loss_weights" not in sample
    assert max(sample["num_cut"] for sample in found) == cut


@pytest.mark.parametrize("objective", ["sample", "corpus"])
def test_encoded_examples_have_the_loss_weights_of_training(world: World, objective: str) -> None:
    share = 1.0 if objective == "corpus" else None
    lines = {name: CorpusShare(ratio=1, loss_share=share) for name in ("toy_vqa", "toy_conversation")}
    recipe = Recipe(objective=objective, corpora=lines)
    encoder = PromptEncoder(world.tokenizer(), tokens_per_image=4, max_tokens=200)
    plan = DataPlan(recipe, world.train, seed=0)
    stage = encode_examples(plan, encoder)
    ready = DataPlan(recipe, world.train, seed=0, encoder=encoder)
    for sample in webdataset.DataPipeline(PlanSource(plan, stop=20), stage):
        expected = ready.encode(sample["__sample__"], encoder).loss_weights
        assert np.array_equal(sample["loss_weights"], expected) and expected is not None and expected.any()


def test_bad_samples_go_to_the_handler(plan: DataPlan, world: World) -> None:
    encoder = PromptEncoder(world.tokenizer(), tokens_per_image=4, max_tokens=8)  # nothing fits
    with pytest.raises(DataError, match="max_tokens=8"):
        list(webdataset.DataPipeline(PlanSource(plan, stop=9), encode_examples(plan, encoder)))
    told: list[Exception] = []
    lenient = encode_examples(plan, encoder, handler=lambda error: told.append(error) is None)
    assert list(webdataset.DataPipeline(PlanSource(plan, stop=9), lenient)) == [] and len(told) == 9


def test_a_rank_without_a_world_size_is_refused(plan: DataPlan) -> None:
    with pytest.raises(ValueError, match="pass both rank and world_size"):
        PlanSource(plan, rank=0)


def train(plan: DataPlan, start: int, stop: int, model: torch.nn.Linear) -> tuple[list[float], list[int]]:
    """A trainer that knows webdataset and PyTorch only: tells the task from the image's pixels and the record."""
    names = ["vqa", "refer", "language"]

    def features(sample: dict[str, Any]) -> tuple[torch.Tensor, int, int]:
        pixels = sample.get("jpg", np.zeros((64, 64, 3), dtype=np.float32))
        task = names.index(sample["json"]["turns"][0]["task"])
        asked = float("question" in sample["json"]["turns"][0])
        values = torch.tensor([float(pixels.mean()), float(pixels.std()), asked, float("jpg" in sample)])
        return values, task, sample["__position__"]

    pipeline = webdataset.DataPipeline(
        PlanSource(plan, start=start, stop=stop),
        webdataset.decode("rgb"),
        webdataset.map(features),
        webdataset.batched(8),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, positions = [], []
    for inputs, tasks, places in pipeline:
        loss = torch.nn.functional.cross_entropy(model(torch.as_tensor(inputs)), torch.as_tensor(tasks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        positions += list(map(int, places))
    return losses, positions


def test_a_plain_loop_trains_and_resumes_at_a_position(plan: DataPlan) -> None:
    torch.manual_seed(0)
    straight, resumed = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    resumed.load_state_dict(straight.state_dict())
    losses, positions = train(plan, 0, 96, straight)
    assert positions == list(range(96)) and len(losses) == 12
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    first, _ = train(plan, 0, 40, resumed)
    second, _ = train(plan, 40, 96, resumed)
    assert first + second == losses
    assert torch.equal(straight.weight, resumed.weight)
