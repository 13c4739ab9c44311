"""One global sequence for any number of ranks and loader processes, over kills and resumes."""

import io
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset, input_bound, iterate_steps
from minigptv2.data.plan import DataPlan, SampleId
from minigptv2.prompt import PromptEncoder
from minigptv2.record import Record, Turn
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import Tokenizer

SIZES = {"one": 1, "three": 3, "seven": 7, "forty": 40, "many": 150}
"""Corpora by their number of samples, down to fewer than there are ranks."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    for name, size in SIZES.items():
        samples = [
            Sample(
                f"{n}", Record((Turn("conversation", f"what {n}", ("red " * (1 + n % 9),)),), 16, 16), buffer.getvalue()
            )
            if n % 5
            else Sample(f"{n}", Record((Turn("language", f"say {n}", ("well " * (1 + n % 7),)),)))
            for n in range(size)
        ]
        write_corpus(samples, folder / name, name, samples_per_shard=11)
    return folder


def stream(
    shards: Path,
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    ranks: int,
    workers: int,
    position: int,
    steps: int,
    batch: int = 12,
) -> list[list[SampleId]]:
    """The samples of each step, over all ranks, in the plan's order."""
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=200)
    config = DataConfig(recipe="", num_workers=workers, max_tokens=200, max_pack_tokens=400)
    plan = DataPlan(recipe, shards, seed=5, global_batch_size=batch)
    by_rank = [
        [
            [sample for pack in step.sample_ids for sample in pack]
            for step in iterate_steps(
                StepDataset(
                    plan,
                    encoder,
                    config,
                    image_size=16,
                    global_batch_size=batch,
                    micro_batch_size=1,
                    rank=rank,
                    world_size=ranks,
                ),
                position=position,
                num_steps=steps,
            )
        ]
        for rank in range(ranks)
    ]
    found = []
    for number, parts in enumerate(zip(*by_rank, strict=True)):
        held = [sample for part in parts for sample in part]
        planned = plan.samples(position + number * batch, batch)
        assert len(held) == batch and Counter(held) == Counter(planned)
        found.append(planned)
    return found


LINES = st.fixed_dictionaries(
    {
        "ratio": st.floats(0.01, 100),
        "schedule": st.sampled_from([[], [[0, 1], [20, 0.1]]]),
    }
)


@given(st.dictionaries(st.sampled_from(sorted(SIZES)), LINES, min_size=1), st.integers(1, 4), st.randoms())
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_stream_is_the_same_for_any_ranks_and_workers_over_kills(
    shards: Path, tokenizer: Tokenizer, lines: dict[str, dict], kill_after: int, rng: Random
) -> None:
    recipe = Recipe(shuffle_window=2, corpora={name: CorpusShare(**line) for name, line in lines.items()})
    shapes = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 1, 3)]
    whole = stream(shards, tokenizer, recipe, ranks=1, workers=0, position=0, steps=5)
    ranks, workers = rng.choice(shapes)
    before = stream(shards, tokenizer, recipe, ranks=ranks, workers=workers, position=0, steps=kill_after)
    ranks, workers = rng.choice(shapes)
    after = stream(
        shards, tokenizer, recipe, ranks=ranks, workers=workers, position=12 * kill_after, steps=5 - kill_after
    )
    assert before + after == whole


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_shape_gives_the_same_stream(shards: Path, tokenizer: Tokenizer, ranks: int, workers: int) -> None:
    recipe = Recipe(corpora={name: CorpusShare(ratio=r) for name, r in (("one", 0.01), ("seven", 1), ("many", 100))})
    expected = stream(shards, tokenizer, recipe, ranks=1, workers=0, position=480, steps=4)
    assert stream(shards, tokenizer, recipe, ranks=ranks, workers=workers, position=480, steps=4) == expected


def test_a_hundred_restarts_lose_nothing_and_repeat_nothing(shards: Path) -> None:
    """Each restart builds the plan anew from its one integer, and reads a few steps of a changing batch size."""
    ratios = {"three": 1.0, "forty": 20.0, "many": 79.0}
    recipe = Recipe(shuffle_window=2, corpora={name: CorpusShare(ratio=ratio) for name, ratio in ratios.items()})
    rng = Random(0)
    position = 0
    seen: Counter[SampleId] = Counter()
    for _ in range(100):
        plan = DataPlan(recipe, shards, seed=9)
        count = rng.choice((4, 8, 24)) * rng.randint(1, 4)
        seen.update(plan.samples(position, count))
        position += count
    assert max(seen.values()) == 1 and seen.total() == position > 3000
    for corpus, name in enumerate(ratios):
        epochs = [{s.sample for s in seen if s.corpus == corpus and s.epoch == e} for e in range(100)]
        whole = [epoch for epoch in epochs if len(epoch) == SIZES[name]]
        begun = [epoch for epoch in epochs if epoch]
        assert len(begun) - len(whole) <= 1 and begun[: len(whole)] == whole and len(whole) >= 8
        share = sum(s.corpus == corpus for s in seen) / position
        assert share == pytest.approx(ratios[name] / 100, abs=2 / position)


def test_waiting_is_said_in_plain_words() -> None:
    seconds = {"records": 1.0, "read": 0.9, "decode": 6.1, "resize": 1.996, "packing": 0.004}
    assert input_bound(0.23, seconds) == "input-bound 23 %: decode 61 %, resize 20 %, records 10 %"
    assert input_bound(0.0, {}) == "input-bound 0 %"
