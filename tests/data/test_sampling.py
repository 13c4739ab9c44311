"""Sampling by turn: every separate turn of a corpus exactly once per epoch, whatever its image holds besides."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minigptv2.boxes import Box
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset, iterate_steps
from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.errors import ConfigError, DataError
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Region, Turn
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import Tokenizer
from tests.data.test_wording import answers

SIZES = (1, 3, 50, 2, 1, 17, 8, 1, 29, 5, 4, 1, 2, 11)
"""Turns per image of the corpora below, in four or five shards."""


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, name: str, sizes: Sequence[int], *, images: bool = True, per_shard: int = 3) -> None:
    """A corpus whose n-th sample has `sizes[n]` separate turns, answered `n-turn`."""
    side, image = (16, picture()) if images else (None, None)
    samples = []
    for number, size in enumerate(sizes):
        task = "conversation" if images else "language"
        turns = tuple(Turn(task, f"ask {n}", (f"{number}-{n}",)) for n in range(size))
        samples.append(Sample(f"{number}", Record(turns, side, side, separate=True), image))
    write_corpus(samples, folder / name, name, samples_per_shard=per_shard)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`seen` has images, `text` has none, `single` has one turn per image, `talk` is conversations."""
    folder = tmp_path_factory.mktemp("sampling")
    write(folder, "seen", SIZES)
    write(folder, "text", SIZES, images=False, per_shard=4)
    write(folder, "single", [1] * 7)
    talk = [
        Sample(f"{n}", Record(tuple(Turn("conversation", "ask", (f"{n}-{m}",)) for m in range(4)), 16, 16), picture())
        for n in range(7)
    ]
    write_corpus(talk, folder / "talk", "talk", samples_per_shard=3)
    return folder


def plan_of(shards: Path, corpus: str = "seen", window: int = 2, seed: int = 3, **line: object) -> DataPlan:
    share = CorpusShare(**{"ratio": 1, **line})  # type: ignore[arg-type]
    return DataPlan(Recipe(shuffle_window=window, corpora={corpus: share}), shards, seed=seed)


def trained(plan: DataPlan, samples: Sequence[SampleId]) -> Counter[str]:
    """How often each turn is trained, by its answer."""
    return Counter(turn.answers[0] for sample in samples for turn in plan.record(sample).turns)


def all_turns(sizes: Sequence[int] = SIZES) -> Counter[str]:
    return Counter(f"{number}-{turn}" for number, size in enumerate(sizes) for turn in range(size))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_trains_every_turn_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    share_images: int,
    per_shard: int,
    window: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, "any", sizes, images=False, per_shard=per_shard)
    plan = plan_of(folder, "any", window, seed, share_images=share_images)
    epoch = sum(-(-size // share_images) for size in sizes)
    assert len(plan.units[0]) == epoch
    for number in range(3):
        samples = plan.samples(number * epoch, epoch)
        assert {sample.epoch for sample in samples} == {number} and len(set(samples)) == epoch
        assert trained(plan, samples) == all_turns(sizes)


def read(shards: Path, tokenizer: Tokenizer, plan: DataPlan, ranks: int, workers: int, start: int, end: int) -> Counter:
    """The answers that all ranks train from position `start` to `end`, in steps of 6."""
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=500)
    config = DataConfig(recipe="", num_workers=workers, max_tokens=500, max_pack_tokens=4000)
    shape = {"image_size": 16, "global_batch_size": 6, "micro_batch_size": 1, "world_size": ranks}
    found: Counter[str] = Counter()
    for rank in range(ranks):
        data = StepDataset(plan, encoder, config, rank=rank, **shape)
        for step in iterate_steps(data, position=start, num_steps=(end - start) // 6):
            assert not step.dropped
            for ids in step.sample_ids:
                for sample in ids:
                    found.update(answers(plan.encode(sample, encoder), tokenizer))
    return found


@pytest.mark.parametrize("corpus", ["seen", "text"])
@pytest.mark.parametrize("share_images", [1, 2, 3, 4])
def test_any_ranks_workers_and_restarts_train_every_turn_once_per_epoch(
    shards: Path, tokenizer: Tokenizer, corpus: str, share_images: int
) -> None:
    """Six epochs are a whole number of steps. Each restart has another shape and builds the plan again."""
    line = {"corpus": corpus, "share_images": share_images, "epochs": 6}
    total = plan_of(shards, **line).length
    assert total == 6 * sum(-(-size // share_images) for size in SIZES)
    rng = Random(share_images)
    found: Counter[str] = Counter()
    position = 0
    while position < total:
        end = min(total, position + 6 * rng.randint(1, 40))
        ranks, workers = rng.choice([(1, 0), (2, 0), (3, 2), (2, 1), (6, 0)])
        found += read(shards, tokenizer, plan_of(shards, **line), ranks, workers, position, end)
        position = end
    assert found == Counter({turn: 6 for turn in all_turns()})


def test_every_object_is_trained_equally_often(tmp_path: Path) -> None:
    """The published list of RefCOCO has one line per object: images of one and of three objects, 400 samples."""
    samples = []
    for key, count in (("alone", 1), ("crowded", 3)):
        boxes = [Box(4 * n, 0, 4 * n + 3, 9) for n in range(count)]
        turns = tuple(Turn("refer", regions=(Region((box,), (f"{key} {box.x1}",)),)) for box in boxes)
        samples.append(Sample(key, Record(turns, 16, 16, separate=True), picture()))
    write_corpus(samples, tmp_path / "refcoco", "refcoco")
    plan = plan_of(tmp_path, "refcoco", task="refer")
    visits = Counter((sample.sample, sample.part) for sample in plan.samples(0, 400))
    assert visits == {(0, 0): 100, (1, 0): 100, (1, 1): 100, (1, 2): 100}
    phrases = Counter(plan.record(sample).turns[0].regions[0].phrases for sample in plan.samples(0, 400))
    assert len(phrases) == 4 and set(phrases.values()) == {100}
    old = Counter(sample.sample for sample in plan_of(tmp_path, "refcoco", sample_by="image").samples(0, 400))
    assert old == {0: 200, 1: 200}


@pytest.mark.parametrize("share_images", [2, 3, 4])
def test_groups_are_nearly_equal_and_drawn_again_in_each_epoch(shards: Path, share_images: int) -> None:
    plan = plan_of(shards, share_images=share_images)
    grouped = []
    for epoch in range(2):
        groups: dict[int, list[frozenset[str]]] = {}
        for sample in plan.samples(epoch * len(plan.units[0]), len(plan.units[0])):
            groups.setdefault(sample.sample, []).append(frozenset(trained(plan, [sample])))
        for found in groups.values():
            sizes = [len(group) for group in found]
            assert max(sizes) <= share_images and max(sizes) - min(sizes) <= 1
        grouped.append({number: set(found) for number, found in groups.items()})
    assert grouped[0] != grouped[1]


@pytest.mark.parametrize("corpus", ["single", "talk"])
def test_corpora_without_separate_turns_do_not_depend_on_the_setting(
    shards: Path, tokenizer: Tokenizer, corpus: str
) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=300)
    plans = [plan_of(shards, corpus, sample_by=by) for by in ("turn", "image")]
    first, second = ([(s, plan.encode(s, encoder).input_ids.tolist()) for s in plan.samples(0, 21)] for plan in plans)
    assert first == second and len(plans[0].units[0]) == 7 and not plans[0].units[0].by_turn
    assert plans[0].record(plans[0].samples(0, 1)[0]).turns == plans[0].corpora[0].record(first[0][0].sample).turns


def test_sizes_epochs_and_limits_count_turns(shards: Path) -> None:
    lines = {"seen": CorpusShare(ratio=None), "single": CorpusShare(ratio=None, epochs=2)}
    plan = DataPlan(Recipe(corpora=lines), shards, seed=0)
    assert plan.shares.tolist() == pytest.approx([135 / 142, 7 / 142])
    assert plan.corpus_counts(0, 5000)["single"] == 14
    by_image = {name: CorpusShare(ratio=None, sample_by="image") for name in lines}
    assert DataPlan(Recipe(corpora=by_image), shards, seed=0).shares.tolist() == pytest.approx([14 / 21, 7 / 21])


def test_the_wording_depends_on_the_turn_and_on_nothing_else(shards: Path, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=300)
    alone = plan_of(shards)
    both = DataPlan(
        Recipe(shuffle_window=1, corpora={"single": CorpusShare(ratio=1), "seen": CorpusShare(ratio=2)}), shards, seed=3
    )
    for sample in alone.samples(0, 60):
        other = SampleId(1, sample.sample, sample.epoch, sample.part)
        assert both.encode(other, encoder).input_ids.tolist() == alone.encode(sample, encoder).input_ids.tolist()


def test_names_of_samples_state_the_turn(shards: Path) -> None:
    sample = SampleId(0, 2, 1, 7)
    assert plan_of(shards).name_of(sample) == "seen: seen-000000.tar / sample 2 (2), turn 7 (epoch 1)"
    assert plan_of(shards, share_images=3).name_of(sample).endswith("(2), group 7 (epoch 1)")
    assert plan_of(shards, sample_by="image").name_of(sample).endswith("(2) (epoch 1)")


def test_sharing_the_first_token_of_a_text_changes_no_turn(shards: Path, tokenizer: Tokenizer) -> None:
    """Turns without an image share `<s>`: each part of a group is the turn's own example after it."""
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=500)
    plan = plan_of(shards, "text", share_images=4)
    for sample in plan.samples(0, 20):
        example, record = plan.encode(sample, encoder), plan.record(sample)
        parts = [example.input_ids[:1], *example.input_ids[1:]]
        expected = [
            encoder.encode(Record((turn,))).input_ids.tolist()[1:]
            for turn in record.turns  # type: ignore[union-attr]
        ]
        assert [int(part) for part in parts[1:]] == [token for turn in expected for token in turn]
        if len(expected) > 1:
            assert example.shared == 1 and example.branches == tuple(map(len, expected))


@pytest.mark.parametrize("shards_and_window", [(17, 16), (33, 16), (5, 4), (7, 3), (8, 4), (3, 4), (1, 1), (19, 4)])
def test_shuffle_windows_have_equal_size(tmp_path: Path, shards_and_window: tuple[int, int]) -> None:
    count, window = shards_and_window
    write(tmp_path, "any", [1] * count, images=False, per_shard=1)
    plan = plan_of(tmp_path, "any", window)
    sizes = [len(plan._window_order(0, 0, number)) for number in range(-(-count // window))]
    assert sum(sizes) == count and max(sizes) <= window and max(sizes) - min(sizes) <= 1


def test_a_record_with_fewer_turns_than_counted_is_dropped_with_a_reason(shards: Path, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=300)
    with pytest.raises(DataError, match=r"sample 1 \(1\): it has 3 separate turns, fewer than the turn counts"):
        plan_of(shards).encode(SampleId(0, 1, 0, 3), encoder)


def test_an_unknown_value_is_refused(shards: Path) -> None:
    from minigptv2.data.mixture import check_recipe

    with pytest.raises(ConfigError, match="corpus 'a': sample_by 'object' is not one of turn, image"):
        check_recipe(Recipe(corpora={"a": CorpusShare(ratio=1, sample_by="object")}), "x.yaml")
