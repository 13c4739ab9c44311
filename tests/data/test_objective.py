"""The objective of a recipe: loss weights by sample and corpus, their means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minigptv2.batch import BATCH_KEYS, IGNORE, OPTIONAL_BATCH_KEYS
from minigptv2.data.collate import collate
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.lengths import MAX_MEASURED_SAMPLES, MEASURED_SAMPLES, measure_lengths
from minigptv2.data.loader import StepDataset, iterate_steps
from minigptv2.data.mixture import Mixture
from minigptv2.data.objective import OBJECTIVES, Composition, shares_of_loss, weigh, weights_of_corpora
from minigptv2.data.plan import DataPlan, load_recipe
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import Example, PromptEncoder, share_image
from minigptv2.tasks import TASKS
from minigptv2.tokenizer import Tokenizer
from tests.conftest import World

CORPORA = ("toy_refer", "toy_conversation", "toy_language", "toy_vqa")


def recipe(objective: str, **more: object) -> Recipe:
    shares = {"toy_refer": 4.0, "toy_conversation": 1.0, "toy_language": 2.0, "toy_vqa": 3.0}
    lines = {
        name: CorpusShare(ratio=1 + number, loss_share=share if objective == "corpus" else None)
        for number, (name, share) in enumerate(shares.items())
    }
    return Recipe(shuffle_window=2, objective=objective, corpora=lines, **more)  # type: ignore[arg-type]


def encoder_of(tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=900)


def dataset(
    world: World, tokenizer: Tokenizer, made: Recipe, *, rank: int = 0, world_size: int = 1, batch: int = 48
) -> StepDataset:
    return StepDataset(
        DataPlan(made, world.train, seed=1, encoder=encoder_of(tokenizer)),
        encoder_of(tokenizer),
        DataConfig(recipe="", num_workers=0, max_tokens=900, max_pack_tokens=2000),
        image_size=32,
        global_batch_size=batch,
        micro_batch_size=3,
        rank=rank,
        world_size=world_size,
    )


def example_of(answers: list[int], task: int = 0) -> Example:
    """A conversation whose answers have so many supervised tokens, each after a question of three tokens."""
    supervised = np.concatenate([np.repeat([False, True], (3, count)) for count in answers])
    ids = np.arange(5, 5 + len(supervised))
    return Example(ids, np.where(supervised, ids, IGNORE), np.full(len(ids), task), 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("answers", [[1], [7], [2, 5, 1], [1, 1, 1, 40]])
def test_weights_of_one_sample(objective: str, answers: list[int]) -> None:
    example = example_of(answers)
    weights = weigh(example, objective, 2.5).loss_weights
    if objective == "token":
        assert weights is None
        return
    assert weights is not None and weights.dtype == np.float32 and weights.shape == example.labels.shape
    supervised = example.labels != IGNORE
    assert (weights[~supervised] == 0).all() and len(set(weights[supervised].tolist())) == 1
    assert weights.sum(dtype=np.float64) == pytest.approx(1.0 if objective == "sample" else 2.5 * sum(answers))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pairs_that_share_an_image_keep_the_weights_they_have_alone(objective: str) -> None:
    prompt, rng = np.array([1, 2, -1, -1]), np.random.default_rng(0)
    alone = []
    for count in (1, 9, 3):
        ids = np.concatenate([prompt, rng.integers(3, 90, 4 + count)])
        labels = np.where(np.arange(len(ids)) >= 8, ids, IGNORE)
        alone.append(Example(ids, labels, np.zeros(len(ids), dtype=np.int64), 1))
    joined_then_weighed = weigh(share_image(alone), objective, 0.3)
    weighed_then_joined = share_image([weigh(example, objective, 0.3) for example in alone])
    for tree in (joined_then_weighed, weighed_then_joined):
        if objective == "token":
            assert tree.loss_weights is None
            continue
        assert tree.loss_weights is not None and not tree.loss_weights[: tree.shared].any()
        start = tree.shared
        for example, length in zip(alone, tree.branches, strict=True):
            expected = weigh(example, objective, 0.3).loss_weights
            assert expected is not None
            assert np.array_equal(tree.loss_weights[start : start + length], expected[tree.shared :])
            start += length


def test_weights_of_corpora_give_each_its_share_and_a_mean_of_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        loss, samples = (values / values.sum() for values in rng.uniform(0.01, 1, (2, 7)))
        tokens = rng.uniform(1, 300, 7)
        weights = weights_of_corpora(loss, samples, tokens.tolist())
        of_loss = samples * tokens * weights
        assert of_loss / of_loss.sum() == pytest.approx(loss)
        assert of_loss.sum() / (samples * tokens).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("unit", "lines", "expected"),
    [
        ("batch", {"a": {"ratio": 3, "batch_size": 2}, "b": {"ratio": 1, "batch_size": 6}}, [0.75, 0.25]),
        ("batch", {"a": {"ratio": 3, "batch_size": 2, "loss_share": 1}, "b": {"ratio": 1, "batch_size": 6}}, [0.5] * 2),
        ("sample", {"a": {"ratio": 3, "loss_share": 2}, "b": {"ratio": 1, "loss_share": 8}}, [0.2, 0.8]),
    ],
)
def test_shares_of_the_loss(unit: str, lines: dict[str, dict[str, float]], expected: list[float]) -> None:
    corpora = {name: CorpusShare(**line) for name, line in lines.items()}  # type: ignore[arg-type]
    made = Recipe(unit=unit, objective="corpus", corpora=corpora)
    assert Mixture(made, [10, 10]).loss_shares == pytest.approx(expected)
    assert shares_of_loss(made, np.array([3.0, 1.0])) == pytest.approx(expected)


def test_the_share_of_batches_follows_temperature_and_tasks() -> None:
    lines = {
        "a": CorpusShare(ratio=16, batch_size=2, task="vqa"),
        "b": CorpusShare(ratio=1, batch_size=6, task="vqa"),
        "c": CorpusShare(ratio=None, batch_size=1, task="refer"),
    }
    warm = Recipe(unit="batch", objective="corpus", temperature=2.0, corpora=lines)
    assert Mixture(warm, [5, 5, 25]).loss_shares == pytest.approx([0.4, 0.1, 0.5])
    divided = Recipe(unit="batch", objective="corpus", temperature=2.0, tasks={"vqa": 1, "refer": 3}, corpora=lines)
    assert Mixture(divided, [5, 5, 25]).loss_shares == pytest.approx([0.2, 0.05, 0.75])


def test_a_schedule_scales_the_share_of_the_loss_as_it_scales_the_samples() -> None:
    lines = {
        "a": CorpusShare(ratio=1, loss_share=1, schedule=[[0, 0], [10, 1]]),
        "b": CorpusShare(ratio=3, loss_share=1, epochs=2),
    }
    mixture = Mixture(Recipe(objective="corpus", corpora=lines), [100, 100])
    assert mixture.shares.tolist() == [0, 1]
    assert mixture.ratio_shares == pytest.approx([0.25, 0.75]) and mixture.loss_shares == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_hold_the_weights_of_the_objective(world: World, tokenizer: Tokenizer, objective: str) -> None:
    made = dataset(world, tokenizer, recipe(objective))
    step = made[0]
    for micro, ids in zip(step.batches, step.sample_ids, strict=True):
        supervised = micro.inputs["labels"] != IGNORE
        if objective == "token":
            assert tuple(micro.inputs) == BATCH_KEYS and micro.weight == int(supervised.sum())
            continue
        assert tuple(micro.inputs) == (*BATCH_KEYS, *OPTIONAL_BATCH_KEYS)
        weights = micro.inputs["loss_weights"]
        assert weights.dtype == torch.float32 and weights.shape == supervised.shape
        assert not weights[~supervised].any() and (weights[supervised] > 0).all()
        assert micro.weight == pytest.approx(float(weights.double().sum()), rel=1e-12)
        if objective == "sample":
            assert micro.weight == pytest.approx(len(ids), rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_weight_and_composition_of_a_step_do_not_depend_on_the_ranks(
    world: World, tokenizer: Tokenizer, objective: str, world_size: int
) -> None:
    made = recipe(objective)
    plan = DataPlan(made, world.train, seed=1, encoder=encoder_of(tokenizer))
    examples = [plan.encode(sample, encoder_of(tokenizer)) for sample in plan.samples(48, 48)]
    corpora = [sample.corpus for sample in plan.samples(48, 48)]
    whole = collate([e for e in examples if not e.num_images], [], 32).weight
    steps = [dataset(world, tokenizer, made, rank=rank, world_size=world_size)[48] for rank in range(world_size)]
    packs = [pack for step in steps for pack in step.batches]
    sums = np.sum([pack.log_sums for pack in packs], axis=0)
    assert len({len(pack.log_sums) for pack in packs}) == 1
    found = Composition.from_sums(sums.tolist(), len(CORPORA))
    assert found.as_sums() == pytest.approx(Composition.of(examples, corpora, len(CORPORA)).as_sums())
    assert found.corpus_weights.sum() == pytest.approx(sum(pack.weight for pack in packs))
    assert found.task_weights.sum() == pytest.approx(found.corpus_weights.sum())
    assert found.corpus_samples.tolist() == np.bincount(corpora, minlength=4).tolist()
    assert found.corpus_weights[2] == pytest.approx(whole)  # toy_language, the only corpus without images
    assert found.shares_of_tasks()["language"] == pytest.approx(found.shares_of_loss(CORPORA)["toy_language"])
    assert set(found.shares_of_tasks()) <= set(TASKS) and sum(found.shares_of_samples(CORPORA).values()) == 1


def test_each_corpus_gets_its_loss_share_over_an_epoch(world: World, tokenizer: Tokenizer) -> None:
    made = recipe("corpus")
    steps = iterate_steps(dataset(world, tokenizer, made, batch=40), position=0, num_steps=10)
    sums = np.sum([pack.log_sums for step in steps for pack in step.batches], axis=0)
    found = Composition.from_sums(sums.tolist(), len(CORPORA))
    expected = [0.4, 0.1, 0.2, 0.3]
    assert list(found.shares_of_loss(CORPORA).values()) == pytest.approx(expected, abs=0.01)
    assert list(found.shares_of_samples(CORPORA).values()) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_means_are_measured_given_or_missing(world: World, tokenizer: Tokenizer) -> None:
    made = recipe("corpus")
    bare = DataPlan(made, world.train, seed=1)
    assert bare.supervised is None
    with pytest.raises(ConfigError, match="pass `encoder` to DataPlan"):
        bare.encode(bare.samples(0, 1)[0], encoder_of(tokenizer))
    measured = DataPlan(made, world.train, seed=1, encoder=encoder_of(tokenizer))
    bare.prepare(encoder_of(tokenizer))
    assert bare.supervised == measured.supervised and bare.fingerprint() == measured.fingerprint()
    for number, name in enumerate(CORPORA):
        counts = [
            plan_example.num_supervised
            for plan_example in (measured.encode(sample, encoder_of(tokenizer)) for sample in _all_of(measured, number))
        ]
        assert measured.supervised and measured.supervised[number] == pytest.approx(np.mean(counts)), name
    given = recipe("corpus")
    for line, mean in zip(given.corpora.values(), measured.supervised or [], strict=True):
        line.supervised_tokens = 2 * mean
    doubled = DataPlan(given, world.train, seed=1)
    assert doubled.supervised == [2 * mean for mean in measured.supervised or []]
    for corpus in range(4):
        assert doubled.corpus_weight(corpus) == pytest.approx(measured.corpus_weight(corpus))
    given.corpora["toy_vqa"].supervised_tokens = None
    partly = DataPlan(given, world.train, seed=1, encoder=encoder_of(tokenizer))
    assert partly.supervised == [*(doubled.supervised or [])[:3], (measured.supervised or [])[3]]


def _all_of(plan: DataPlan, corpus: int) -> list:  # type: ignore[type-arg]
    """The samples of a corpus in its first epoch."""
    return [sample for sample in plan.samples(0, 500) if sample.corpus == corpus and sample.epoch == 0]


def test_one_rank_measures_for_all(world: World, tokenizer: Tokenizer) -> None:
    asked = []

    def run_once(measure):  # type: ignore[no-untyped-def]
        asked.append(1)
        return kept if (kept := stored) else measure()

    stored: list = []  # type: ignore[type-arg]
    first = DataPlan(recipe("corpus"), world.train, seed=1, encoder=encoder_of(tokenizer), run_once=run_once)
    assert asked == [1] and first.supervised
    calls: list[int] = []

    class Counting(PromptEncoder):
        def encode(self, *given, **more):  # type: ignore[no-untyped-def]
            calls.append(1)
            return super().encode(*given, **more)

    stored += first._measure(encoder_of(tokenizer))
    counting = Counting(tokenizer, tokens_per_image=16, max_tokens=900)
    other = DataPlan(recipe("corpus"), world.train, seed=1, encoder=counting, run_once=run_once)
    assert other.supervised == first.supervised and not calls
    assert other.fingerprint() == first.fingerprint()


def test_the_fingerprint_follows_objective_shares_and_means(world: World, tokenizer: Tokenizer) -> None:
    def fingerprint(made: Recipe) -> str:
        return DataPlan(made, world.train, seed=1, encoder=encoder_of(tokenizer)).fingerprint()

    other_share, other_mean = recipe("corpus"), recipe("corpus")
    other_share.corpora["toy_vqa"].loss_share = 9.0
    other_mean.corpora["toy_vqa"].supervised_tokens = 12.0
    made = [*(recipe(objective) for objective in OBJECTIVES), other_share, other_mean]
    assert len({fingerprint(one) for one in made}) == len(made)
    assert fingerprint(recipe("corpus")) == fingerprint(recipe("corpus"))


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0, 2.5])
def test_as_many_samples_are_measured_as_the_mean_needs(spread: float) -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3, max(spread, 1e-9), 40_000), 1, 900).astype(int)
    seen: set[int] = set()

    def encode(sample: int, epoch: int) -> Example:
        seen.add(sample)
        if sample % 100 == 7:
            raise DataError("bad")
        return example_of([int(lengths[sample])])

    found = measure_lengths(encode, len(lengths), "corpus", precise=True)
    assert found.supervised == pytest.approx(lengths.mean(), rel=0.03)
    assert MEASURED_SAMPLES <= len(seen) <= MEASURED_SAMPLES + MAX_MEASURED_SAMPLES
    assert (len(seen) > 1000) == (spread >= 0.4) and found.pairs == 1
    assert found == measure_lengths(encode, len(lengths), "corpus", precise=True)
    seen.clear()
    assert measure_lengths(encode, len(lengths), "corpus", precise=False).tokens == found.tokens
    assert len(seen) == MEASURED_SAMPLES


@pytest.mark.parametrize("size", [1, 3, 40, 255])
def test_a_small_corpus_is_measured_over_several_epochs(size: int) -> None:
    """Each epoch may draw another answer of a sample, and the first is not the mean."""

    def encode(sample: int, epoch: int) -> Example:
        return example_of([30 if (sample + epoch) % 5 == 0 else 5])

    found = measure_lengths(encode, size, "corpus", precise=True)
    assert found.supervised == pytest.approx(10, rel=0.03)
    assert found.tokens == np.mean([len(encode(sample, 0)) for sample in range(size)])


def test_a_corpus_without_a_readable_sample_is_refused() -> None:
    def encode(sample: int, epoch: int) -> Example:
        raise DataError("bad")

    with pytest.raises(DataError, match="corpus: none of 5 samples can be encoded"):
        measure_lengths(encode, 5, "corpus", precise=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objective: tokens\ncorpora: {a: {ratio: 1}}", "objective 'tokens' is not one of token, sample, corpus"),
        ("objective: corpus\ncorpora: {a: {ratio: 1}}", "corpus 'a': with objective corpus, set loss_share"),
        (
            "{objective: corpus, unit: token, corpora: {a: {ratio: 1, loss_share: 1}, b: {ratio: 1}}}",
            "corpus 'b': with objective corpus, set loss_share .*The unit is token",
        ),
        ("corpora: {a: {ratio: 1, loss_share: 1}}", "corpus 'a' has loss_share=1.0, but .* objective is token"),
        (
            "{objective: sample, corpora: {a: {ratio: 1, supervised_tokens: 9}}}",
            "corpus 'a' has supervised_tokens=9.0, but the recipe's objective is sample",
        ),
        *(
            (
                f"{{objective: corpus, corpora: {{a: {{ratio: 1, loss_share: {value}}}}}}}",
                "loss_share must be (positive and|a) finite",
            )
            for value in ("0", "-2", ".inf", ".nan")
        ),
        (
            "{objective: corpus, corpora: {a: {ratio: 1, loss_share: 1, supervised_tokens: 0}}}",
            "corpus 'a': supervised_tokens must be positive and finite, got 0",
        ),
    ],
)
def test_bad_objectives_are_config_errors(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(str(file))


def test_examples_with_and_without_weights_do_not_mix() -> None:
    plain, weighed = example_of([3]), weigh(example_of([3]), "sample", 1.0)
    with pytest.raises(ValueError, match="1 of 2 examples have loss weights: expected all or none"):
        collate([plain, weighed], [], 32)
