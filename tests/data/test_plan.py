"""The global sequence: ratios, epochs, seeks."""

from collections import Counter
from pathlib import Path

import pytest

from minigptv2.data.config import CorpusShare, Recipe
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import PromptEncoder
from minigptv2.tokenizer import Tokenizer
from tests.conftest import World


def recipe(**ratios: float) -> Recipe:
    shares = {name: CorpusShare(ratio=ratio, task="mixed") for name, ratio in ratios.items()}
    return Recipe(shuffle_window=2, corpora=shares)


def test_an_epoch_holds_every_sample_once_and_epochs_differ(world: World) -> None:
    plan = DataPlan(recipe(toy_refer=3, toy_vqa=1), world.train, seed=3)
    refer = [s for s in plan.samples(0, 400) if s.corpus == 0]
    orders = []
    for epoch in range(3):
        order = [s.sample for s in refer if s.epoch == epoch]
        if len(order) == 40:
            assert sorted(order) == list(range(40))
            orders.append(order)
    assert len(orders) >= 2 and orders[0] != orders[1] and orders[0] != list(range(40))


def test_a_seek_equals_reading_on(world: World) -> None:
    names = ("toy_refer", "toy_vqa", "toy_language")
    plan = DataPlan(recipe(**dict.fromkeys(names, 1.0)), world.train, seed=0)
    fresh = DataPlan(recipe(**dict.fromkeys(names, 1.0)), world.train, seed=0)
    assert fresh.samples(12_345, 50) == plan.samples(0, 12_395)[-50:]


def test_counts_by_arithmetic_equal_counting(world: World) -> None:
    plan = DataPlan(recipe(toy_refer=5, toy_vqa=2, toy_language=0.3), world.train, seed=0)
    for start, count in ((0, 77), (9_990, 30), (123, 25_000)):
        counted = Counter(plan.names[s.corpus] for s in plan.samples(start, count))
        assert counted == +plan.corpus_counts(start, count)


def test_the_fingerprint_follows_seed_recipe_and_manifests(world: World) -> None:
    same = [DataPlan(recipe(toy_refer=1, toy_vqa=1), world.train, seed=1).fingerprint() for _ in range(2)]
    others = [
        DataPlan(recipe(toy_refer=1, toy_vqa=1), world.train, seed=2).fingerprint(),
        DataPlan(recipe(toy_refer=1, toy_vqa=2), world.train, seed=1).fingerprint(),
        DataPlan(recipe(toy_refer=1, toy_vqa=1), world.val, seed=1).fingerprint(),
    ]
    assert same[0] == same[1] and len({same[0], *others}) == 4


def test_a_corpus_of_another_task_than_the_recipe_says_is_refused(world: World) -> None:
    wrong = Recipe(corpora={"toy_refer": CorpusShare(ratio=1, task="vqa")})
    with pytest.raises(DataError, match="'toy_refer' is task 'vqa' in the recipe, but its shards also hold refer"):
        DataPlan(wrong, world.train, seed=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corpora: {a: {ratio: 1, task: refr}}", "unknown task 'refr'; did you mean 'refer'"),
        ("corpora: {a: {ratio: -1, task: refer}}", "ratio must be positive"),
        ("corpora: {a: {ratio: 1, tsk: refer}}", "unknown key 'corpora.a.tsk'"),
        ("corpora: {}", "has no corpora"),
        ("unit: moon\ncorpora: {a: {ratio: 1}}", "unit 'moon'"),
        ("corpora: [", "not valid YAML"),
    ],
)
def test_bad_recipes_are_config_errors(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_recipe(file)


def test_ratios_by_token_measure_the_corpora_and_need_a_tokenizer(world: World, tokenizer: Tokenizer) -> None:
    by_token = Recipe(unit="token", corpora={name: CorpusShare(ratio=1) for name in ("toy_vqa", "toy_conversation")})
    with pytest.raises(ConfigError, match="pass a tokenizer to measure them"):
        DataPlan(by_token, world.train, seed=0)
    encoder = PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=900)
    plan = DataPlan(by_token, world.train, seed=0, encoder=encoder)
    tokens = Counter[int]()
    for sample in plan.samples(0, 800):
        tokens[sample.corpus] += len(plan.encode(sample, encoder))
    assert tokens[0] / tokens.total() == pytest.approx(0.5, abs=0.03)
    assert plan.shares[0] > 1.3 * plan.shares[1]  # its samples are shorter


def test_schedules_need_the_global_batch_size_and_are_part_of_the_identity(world: World) -> None:
    moving = Recipe(corpora={"toy_vqa": CorpusShare(ratio=1, schedule=[[0, 1], [9, 2]])})
    with pytest.raises(ConfigError, match="pass global_batch_size"):
        DataPlan(moving, world.train, seed=0)
    prints = {DataPlan(moving, world.train, seed=0, global_batch_size=size).fingerprint() for size in (4, 8)}
    still = {DataPlan(recipe(toy_vqa=1), world.train, seed=0, global_batch_size=size).fingerprint() for size in (4, 8)}
    assert len(prints) == 2 and len(still) == 1
