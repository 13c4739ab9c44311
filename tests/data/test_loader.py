"""From the plan to batches: elastic, balanced, complete; damaged samples dropped by name."""

import shutil
from pathlib import Path

import pytest
import torch

from minigptv2.batch import BATCH_KEYS, IGNORE
from minigptv2.data.collate import collate
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset, iterate_steps, truncation_report
from minigptv2.data.plan import DataPlan
from minigptv2.errors import DataError
from minigptv2.prompt import IMAGE_PLACEHOLDER, PromptEncoder
from minigptv2.shards.dropped import DropLimit, Dropped, TooManyDropped, read_report, save_unreported_drops
from minigptv2.tokenizer import Tokenizer
from tests.conftest import World

MIXED = Recipe(
    shuffle_window=2,
    corpora={name: CorpusShare(ratio=1) for name in ("toy_refer", "toy_conversation", "toy_language", "photographs")},
)


def dataset(
    world: World,
    tokenizer: Tokenizer,
    *,
    rank: int = 0,
    world_size: int = 1,
    shards: Path | None = None,
    recipe: Recipe = MIXED,
    config: DataConfig | None = None,
) -> StepDataset:
    config = config or DataConfig(recipe="", num_workers=0, max_tokens=900, max_pack_tokens=4000)
    return StepDataset(
        DataPlan(recipe, shards or world.train, seed=1),
        PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=config.max_tokens),
        config,
        image_size=32,
        global_batch_size=12,
        micro_batch_size=3,
        rank=rank,
        world_size=world_size,
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_step_holds_the_same_samples_on_any_number_of_ranks(
    world: World, tokenizer: Tokenizer, world_size: int
) -> None:
    for position in (0, 120, 1_200):
        alone = dataset(world, tokenizer)[position]
        shared = [dataset(world, tokenizer, rank=r, world_size=world_size)[position] for r in range(world_size)]
        assert len({len(step.batches) for step in shared}) == 1
        samples = sorted(str(s) for step in shared for pack in step.sample_ids for s in pack)
        assert samples == sorted(str(s) for pack in alone.sample_ids for s in pack) and len(samples) == 12
        count = lambda steps: sum(int((b.inputs["labels"] != IGNORE).sum()) for s in steps for b in s.batches)  # noqa: E731
        assert count(shared) == count([alone])


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_change_nothing(world: World, tokenizer: Tokenizer, workers: int) -> None:
    config = DataConfig(recipe="", num_workers=workers, max_tokens=900, max_pack_tokens=4000)
    steps = list(iterate_steps(dataset(world, tokenizer, config=config), position=24, num_steps=3))
    assert [step.position for step in steps] == [24, 36, 48]
    for step in steps:
        again = dataset(world, tokenizer)[step.position]
        for ours, theirs in zip(step.batches, again.batches, strict=True):
            assert all(torch.equal(ours.inputs[key], theirs.inputs[key]) for key in BATCH_KEYS)


def test_batches_keep_the_contract(world: World, tokenizer: Tokenizer) -> None:
    step = dataset(world, tokenizer)[0]
    for micro, ids in zip(step.batches, step.sample_ids, strict=True):
        batch = micro.inputs
        assert tuple(batch) == BATCH_KEYS
        length = batch["input_ids"].shape[1]
        for key in BATCH_KEYS:
            assert batch[key].shape == ((1, length) if key != "pixel_values" else batch[key].shape)
            assert batch[key].dtype == (torch.uint8 if key == "pixel_values" else torch.int64)
        assert int((batch["input_ids"] == IMAGE_PLACEHOLDER).sum()) == 16 * len(batch["pixel_values"])
        assert int((batch["position_ids"] == 0).sum()) == len(ids) == int(batch["segment_ids"].max())
        assert micro.weight == int((batch["labels"] != IGNORE).sum())
        assert micro.counts == {"tokens": length, "images": len(batch["pixel_values"])}


def test_a_pack_whose_samples_were_all_dropped_is_padding() -> None:
    micro = collate([], [], 32)
    batch = micro.inputs
    assert micro.weight == 0 and micro.counts == {"tokens": 0, "images": 0}
    assert batch["segment_ids"].tolist() == [[0]] and batch["labels"].tolist() == [[IGNORE]]
    assert batch["pixel_values"].shape == (0, 3, 32, 32)


def test_damaged_images_and_records_are_dropped_by_name(world: World, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(world.train / "toy_refer", tmp_path / "toy_refer")
    recipe = Recipe(shuffle_window=8, corpora={"toy_refer": CorpusShare(ratio=1)})
    file = tmp_path / "toy_refer" / "toy_refer-000001.tar"
    data = file.read_bytes()
    data = data.replace(b"\xff\xd8\xff\xe0", b"\x00\x00\x00\x00", 1).replace(
        b'{"turns":[{"task"', b'{"turns":[#"task"', 1
    )
    file.write_bytes(data)
    steps = list(iterate_steps(dataset(world, tokenizer, shards=tmp_path, recipe=recipe), position=0, num_steps=3))
    dropped = [one for step in steps for one in step.dropped]
    assert dropped and {(one.corpus, one.shard) for one in dropped} == {("toy_refer", "toy_refer-000001.tar")}
    assert any("the record's checksum is wrong" in one.reason for one in dropped)
    assert [good for step in steps for good in step.outcomes].count(False) == len(dropped)
    kept = sum(len(pack) for step in steps for pack in step.sample_ids)
    assert kept + len(dropped) == 36


def test_a_bad_record_counts_once_however_many_ranks_see_it(world: World, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(world.train / "toy_refer", tmp_path / "toy_refer")
    file = tmp_path / "toy_refer" / "toy_refer-000000.tar"
    file.write_bytes(file.read_bytes().replace(b'{"turns":[{"task"', b'{"turns":[#"task"', 3))
    recipe = Recipe(shuffle_window=8, corpora={"toy_refer": CorpusShare(ratio=1)}, max_bad_rate=1)
    seen = [
        good
        for rank in range(4)
        for step in iterate_steps(
            dataset(world, tokenizer, shards=tmp_path, recipe=recipe, rank=rank, world_size=4), position=0, num_steps=20
        )
        for good in step.outcomes
    ]
    assert len(seen) == 240 and 0 < seen.count(False) == 240 - seen.count(True)
    alone = iterate_steps(dataset(world, tokenizer, shards=tmp_path, recipe=recipe), position=0, num_steps=20)
    assert seen.count(False) == sum(step.outcomes.count(False) for step in alone)


def test_what_stopped_a_rank_is_kept_in_its_own_file(tmp_path: Path) -> None:
    one = Dropped("c", "c-0.tar", "k", "bad")
    with pytest.raises(TooManyDropped) as stop:
        DropLimit(max_in_a_row=1, max_rate=1).judge([False], [one])
    save_unreported_drops(tmp_path, [(7, 3, loss) for loss in stop.value.dropped])
    (row,) = read_report(tmp_path / "dropped.rank3.jsonl")
    assert (row["step"], row["key"], row["reason"]) == (7, "k", "bad")


def test_too_many_bad_samples_stop_the_run(world: World, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(world.train / "toy_refer", tmp_path / "toy_refer")
    for file in (tmp_path / "toy_refer").glob("*.tar"):
        file.write_bytes(file.read_bytes().replace(b'{"turns":[', b'{"turns":[#'[:10]))
        file.write_bytes(file.read_bytes().replace(b'{"turns":', b'["turns":'))
    recipe = Recipe(corpora={"toy_refer": CorpusShare(ratio=1)}, max_bad_in_a_row=25, max_bad_rate=1)
    with pytest.raises(DataError, match="25 bad samples in a row.*last toy_refer-00000.*checksum"):
        list(iterate_steps(dataset(world, tokenizer, shards=tmp_path, recipe=recipe), position=0, num_steps=50))


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([True] * 3 + [False] * 4, "4 bad samples in a row"),
        ([False, True] * 11, "11 of 22 samples were bad, more than the recipe's max_bad_rate=0.01"),
        ([False, False, False, True] * 3 + [True] * 2000, None),
        ([True] * 2000 + [False, True] * 21, "21 of 2042 samples"),
    ],
)
def test_the_limits_of_the_recipe(outcomes: list[bool], words: str | None) -> None:
    limit = DropLimit(max_in_a_row=4, max_rate=0.01)
    stopped = None
    try:
        for start in range(0, len(outcomes), 2):
            limit.judge(outcomes[start : start + 2], [Dropped("c", "c-0.tar", "k", "bad")])
    except DataError as error:
        stopped = str(error)
    assert (stopped is None) if words is None else (stopped is not None and words in stopped and "c-0.tar" in stopped)


def test_a_question_that_fills_the_bound_is_dropped_by_name(world: World, tokenizer: Tokenizer) -> None:
    config = DataConfig(recipe="", num_workers=0, max_tokens=16, max_pack_tokens=400)
    steps = list(iterate_steps(dataset(world, tokenizer, config=config), position=0, num_steps=1))
    assert 0 < len(steps[0].dropped) == steps[0].outcomes.count(False)
    assert all("the first question alone fills max_tokens=16" in one.reason for one in steps[0].dropped)


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (0, 2), (0, 4)])
def test_long_text_is_cut_and_counted_on_every_rank(
    world: World, tokenizer: Tokenizer, workers: int, world_size: int
) -> None:
    config = DataConfig(recipe="", num_workers=workers, max_tokens=90, max_pack_tokens=400)
    whole = DataConfig(recipe="", num_workers=0, max_tokens=900, max_pack_tokens=4000)
    plan = dataset(world, tokenizer, config=whole)
    expected = []
    for sample in plan.plan.samples(0, 36):
        example = plan.plan.encode(sample, plan.encoder)
        num_text = len(example) - 16 * example.num_images
        if num_text > 90:
            expected.append((sample, num_text - 90))
    assert expected
    for rank in range(world_size):
        loaded = dataset(world, tokenizer, rank=rank, world_size=world_size, config=config)
        steps = list(iterate_steps(loaded, position=0, num_steps=3))
        assert [pair for step in steps for pair in step.truncated] == expected
        assert not any(step.dropped for step in steps) and all(all(step.outcomes) for step in steps)
    report = truncation_report(plan.plan, expected, 90)
    longest = max(expected, key=lambda pair: pair[1])
    assert f"truncated {len(expected)} samples to 90 text tokens" in report and "toy_conversation " in report
    assert f"The longest is {plan.plan.name_of(longest[0])}, where {longest[1]} tokens were cut" in report
