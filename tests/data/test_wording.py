"""Records of separate turns: a sample trains one of them alone, or several that share the image."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigptv2.batch import IGNORE
from minigptv2.data.config import CorpusShare, DataConfig, Recipe
from minigptv2.data.loader import StepDataset
from minigptv2.data.objective import weigh
from minigptv2.data.plan import DataPlan
from minigptv2.errors import DataError
from minigptv2.prompt import Example, PromptEncoder, split_shared
from minigptv2.record import Record, Turn
from minigptv2.shards.writer import Sample, write_corpus
from minigptv2.tokenizer import Tokenizer

TURNS = 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of six images: `questions` has five separate turns each, `talk` is one conversation of five."""
    folder = tmp_path_factory.mktemp("separate")
    for name, separate in (("questions", True), ("talk", False)):
        samples = []
        for number in range(6):
            turns = tuple(Turn("conversation", f"what is {n}", (f"thing {n} of {number}",)) for n in range(TURNS))
            buffer = io.BytesIO()
            Image.new("RGB", (40, 30), (number * 40, 0, 0)).save(buffer, "JPEG")
            samples.append(Sample(f"{number}", Record(turns, 40, 30, separate=separate), buffer.getvalue()))
        write_corpus(samples, folder / name, name, samples_per_shard=4)
    return folder


def plan_of(shards: Path, **share: int | str) -> DataPlan:
    return DataPlan(Recipe(corpora={"questions": CorpusShare(ratio=1, **share)}), shards, seed=3)


def answers(example: Example, tokenizer: Tokenizer) -> list[str]:
    """What is supervised, split at each end of an answer."""
    ids = example.labels[example.labels != IGNORE].tolist()
    ends = [n + 1 for n, token in enumerate(ids) if token == tokenizer.eos_id]
    return [tokenizer.decode(ids[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("share_images", [1, 2, 3, 5, 8])
def test_every_turn_is_trained_before_any_comes_twice(shards: Path, tokenizer: Tokenizer, share_images: int) -> None:
    plan = plan_of(shards, share_images=share_images, sample_by="image")
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400)
    seen: dict[int, Counter[str]] = {number: Counter() for number in range(6)}
    for sample in plan.samples(0, 6 * TURNS):
        spoken = answers(plan.encode(sample, encoder), tokenizer)
        assert len(spoken) == min(share_images, TURNS) == len(set(spoken))
        seen[sample.sample].update(spoken)
    for counts in seen.values():
        assert len(counts) == TURNS and max(counts.values()) - min(counts.values()) == 0


def test_a_shared_image_is_its_pairs_with_the_common_part_once(shards: Path, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400)
    plan = plan_of(shards, share_images=TURNS)
    for sample in plan.samples(0, 6):
        tree = plan.encode(sample, encoder)
        assert len(tree.branches) == tree.num_turns == TURNS and tree.num_images == 1
        assert tree.shared + sum(tree.branches) == len(tree)
        ends = np.cumsum([tree.shared, *tree.branches])
        for start, end in zip(ends, ends[1:], strict=False):
            alone = np.concatenate([tree.input_ids[: tree.shared], tree.input_ids[start:end]])
            text = tokenizer.decode([token for token in alone.tolist() if token >= 0])
            assert text.count("what is") == 1 and text.count("thing") == 1
            assert tree.position_ids[start] == tree.shared


def alone(example: Example) -> list[list[tuple[int, int, float]]]:
    """Each pair of an example as it would be without sharing: id, label and loss weight of its tokens."""
    if not example.branches:
        rows = [np.arange(len(example))]
    else:
        ends = example.shared + np.cumsum([0, *example.branches])
        rows = [np.r_[0 : example.shared, start:end] for start, end in zip(ends, ends[1:], strict=False)]
    weights = np.zeros(len(example)) if example.loss_weights is None else example.loss_weights
    tokens = list(zip(example.input_ids.tolist(), example.labels.tolist(), weights.tolist(), strict=True))
    return [[tokens[place] for place in row] for row in rows]


def test_the_text_of_each_pair_is_cut_as_if_alone(shards: Path, tokenizer: Tokenizer) -> None:
    plan = plan_of(shards, share_images=TURNS)
    sample = plan.samples(0, 1)[0]
    whole = plan.encode(sample, PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400))
    bound = len(alone(whole)[0]) - 4 - 2
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=bound)
    cut = plan.encode(sample, encoder)
    assert len(cut.branches) == TURNS and cut.num_cut == len(whole) - len(cut) > 0
    assert {cut.shared + length - 4 for length in cut.branches} == {bound}
    for ours, theirs in zip(alone(cut), alone(whole), strict=True):
        assert ours == theirs[: bound + 4]


@pytest.mark.parametrize("share_images", [1, TURNS])
def test_a_question_that_fills_the_bound_is_dropped_by_name(
    shards: Path, tokenizer: Tokenizer, share_images: int
) -> None:
    plan = plan_of(shards, share_images=share_images)
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=8)
    with pytest.raises(DataError, match=r"questions-00000\d.tar / .*: the first question alone fills max_tokens=8"):
        plan.encode(plan.samples(0, 1)[0], encoder)


@pytest.mark.parametrize("objective", ["token", "sample", "corpus"])
def test_pairs_that_exceed_a_pack_together_are_divided(shards: Path, tokenizer: Tokenizer, objective: str) -> None:
    plan = plan_of(shards, share_images=TURNS)
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400)
    for sample in plan.samples(0, 6):
        whole = weigh(plan.encode(sample, encoder), objective, 2.5)
        longest = whole.shared + max(whole.branches)
        for limit in range(longest, len(whole) + 2):
            parts = split_shared(whole, limit)
            assert max(map(len, parts)) <= limit and sum(part.num_turns for part in parts) == TURNS
            assert [pair for part in parts for pair in alone(part)] == alone(whole)
            assert all(part.num_images == 1 and (not part.branches or len(part.branches) > 1) for part in parts)
            assert all(len(part.position_ids) == len(part) for part in parts)
        assert len(split_shared(whole, longest)) > 1 and split_shared(whole, len(whole)) == [whole]


def test_a_step_with_divided_pairs_trains_the_same(shards: Path, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=60)

    def supervised(max_pack_tokens: int) -> list[int]:
        config = DataConfig(recipe="", num_workers=0, max_tokens=60, max_pack_tokens=max_pack_tokens)
        settings = {"image_size": 32, "global_batch_size": 6, "micro_batch_size": 3, "rank": 0, "world_size": 1}
        step = StepDataset(plan_of(shards, share_images=TURNS), encoder, config, **settings)[0]
        assert not step.dropped and step.outcomes == [True] * 6
        labels = [token for micro in step.batches for token in micro.inputs["labels"].flatten().tolist()]
        return sorted(token for token in labels if token != IGNORE)

    assert supervised(64) == supervised(4000)


def test_a_conversation_is_never_taken_apart(shards: Path, tokenizer: Tokenizer) -> None:
    recipe = Recipe(corpora={"talk": CorpusShare(ratio=1, share_images=8)})
    example = DataPlan(recipe, shards, seed=0).encode(
        DataPlan(recipe, shards, seed=0).samples(0, 1)[0], PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400)
    )
    assert example.num_turns == TURNS and not example.branches


def test_batches_hold_a_shared_image_once(shards: Path, tokenizer: Tokenizer) -> None:
    plan = plan_of(shards, share_images=3, sample_by="image")
    config = DataConfig(recipe="", num_workers=0, max_tokens=400, max_pack_tokens=4000)
    step = StepDataset(
        plan,
        PromptEncoder(tokenizer, tokens_per_image=4, max_tokens=400),
        config,
        image_size=32,
        global_batch_size=6,
        micro_batch_size=3,
        rank=0,
        world_size=1,
    )[0]
    for micro in step.batches:
        batch = micro.inputs
        positions, segments = batch["position_ids"][0], batch["segment_ids"][0]
        assert len(batch["pixel_values"]) == 3 == int(segments.max()) == int((positions == 0).sum())
        jumps = (positions[1:] != positions[:-1] + 1) & (positions[1:] != 0)
        assert int(jumps.sum()) == 3 * 2 and (batch["labels"][0, 1:][jumps] == IGNORE).all()
