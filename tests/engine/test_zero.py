"""Compares ZeRO 0 to 3 with plain PyTorch: losses, gradients of any split into packs, precision and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.numerics import (
    MODES,
    PACKS,
    largest_difference,
    plain_pytorch,
    random_packs,
    reference_of_split,
)
from tests.ranks import run_ranks

STEPS = 10
TWO_RANKS = [
    {"mode": "lora", "zero": 3},
    {"mode": "all", "zero": 3},
    {"mode": "lora", "zero": 2},
    {"mode": "lora", "zero": 1},
    {"mode": "lora", "zero": 3, "more": {"recompute": 1}},
    {"mode": "lora", "zero": 3, "objective": "corpus"},
    {"mode": "lora", "zero": 3, "objective": "sample"},
    {"mode": "lora", "zero": 0, "objective": "corpus"},
    {"mode": "lora", "zero": 0, "objective": "sample"},
]
ONE_RANK = [
    {"mode": "lora", "zero": 0},
    {"mode": "all", "zero": 0},
    {"mode": "all", "zero": 0, "more": {"recompute": 2}},
    {"mode": "all", "zero": 3, "more": {"precision": "bf16"}, "gradients": False},
    {"mode": "lora", "zero": 3, "more": {"precision": "bf16"}, "gradients": False},
    {"mode": "lora", "zero": 3, "more": {"dropout": 0.1}},
    {"mode": "lora", "zero": 3, "more": {"dropout": 0.1}},
]


def run_cases(cases: list[dict[str, Any]], ranks: int, folder: Path, steps: int = STEPS) -> list[list[dict[str, Any]]]:
    """Return the results by case, then by rank."""
    by_rank = run_ranks(
        "tests.engine.numerics:train_many",
        ranks,
        folder,
        cases=cases,
        folder=str(folder),
        steps=steps,
        timeout_s=3000,
    )
    return [list(results) for results in zip(*by_rank, strict=True)]


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    """The reference of each mode, and of each other objective with LoRA, by its name."""
    weighted = {objective: plain_pytorch("lora", STEPS, objective=objective) for objective in ("corpus", "sample")}
    return {mode: plain_pytorch(mode, STEPS) for mode in MODES} | weighted


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_cases(TWO_RANKS, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_cases(ONE_RANK, 1, tmp_path_factory.mktemp("one"))


def check_equal(results: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    losses = reference["losses"]
    assert results[0]["sums"] == pytest.approx(reference["sums"], abs=2e-3)
    assert losses[-1] < losses[0] - 0.1, "the reference must learn, or equality proves little"
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=1e-5)
        assert result["norms"] == pytest.approx(reference["norms"], rel=1e-4, abs=1e-6)
        assert result["weights"] == pytest.approx(reference["weights"], rel=1e-6)
        assert result["supervised"] == reference["supervised"]
        if result is results[0]:  # only the main rank keeps the gathered tensors
            assert result["calls"] == results[0]["calls"]
        for ours, theirs in zip(result["gradients"], reference["gradients"], strict=True):
            assert largest_difference(ours, theirs) <= 1e-6


@pytest.mark.parametrize("case", range(len(TWO_RANKS)), ids=lambda n: "-".join(map(str, TWO_RANKS[n].values())))
def test_two_ranks_equal_plain_pytorch(
    on_two_ranks: list[list[dict[str, Any]]], references: dict[str, dict[str, Any]], case: int
) -> None:
    check_equal(on_two_ranks[case], references[TWO_RANKS[case].get("objective", TWO_RANKS[case]["mode"])])


def test_the_objectives_differ(references: dict[str, dict[str, Any]]) -> None:
    losses = [references[name]["losses"][0] for name in ("lora", "corpus", "sample")]
    assert min(abs(a - b) for a, b in ((losses[0], losses[1]), (losses[0], losses[2]), (losses[1], losses[2]))) > 1e-3


@pytest.mark.parametrize("case", range(3), ids=lambda n: "-".join(map(str, ONE_RANK[n].values())))
def test_one_rank_without_zero_equals_plain_pytorch(
    on_one_rank: list[list[dict[str, Any]]], references: dict[str, dict[str, Any]], case: int
) -> None:
    check_equal(on_one_rank[case], references[ONE_RANK[case]["mode"]])


def test_zero3_shares_out_every_part_and_calls_modules_equally(on_two_ranks: list[list[dict[str, Any]]]) -> None:
    for results in on_two_ranks[:2]:
        for result in results:
            assert result["calls"] == {"vision": STEPS * PACKS // 2, "language": STEPS * PACKS // 2}
            for part, (held, total) in result["held"].items():
                assert held / total == pytest.approx(0.5, rel=0.02), part


def test_bf16_keeps_fp32_masters_and_rotary_frequencies(
    on_one_rank: list[list[dict[str, Any]]], references: dict[str, dict[str, Any]]
) -> None:
    for case in (3, 4):
        (result,), reference = on_one_rank[case], references[ONE_RANK[case]["mode"]]
        assert result["rotary_dtype"] == "torch.float32"
        assert result["losses"] == pytest.approx(reference["losses"], abs=0.2)
        assert result["masters_are_finer_than_bf16"]
    (result,) = on_one_rank[3]
    assert result["losses"][-1] < result["losses"][0] - 0.5


def test_the_same_seed_gives_the_same_bits_dropout_included(
    on_one_rank: list[list[dict[str, Any]]], references: dict[str, dict[str, Any]]
) -> None:
    (first,), (second,) = on_one_rank[5], on_one_rank[6]
    for key in ("losses", "norms", "sums", "gradients"):
        assert first[key] == second[key], key
    assert first["losses"] != pytest.approx(references["lora"]["losses"], abs=1e-5), "dropout must have an effect"


def check_splits(ranks: int, splits: list[int], folder: Path) -> None:
    results = run_ranks(
        "tests.engine.numerics:gradients_of_splits", ranks, folder, timeout_s=3000, splits=splits, folder=str(folder)
    )
    text_only = [
        split
        for split in splits
        if len({any(reference_images(split, pack) for pack in packs) for packs in random_packs(split, ranks)}) == 2
    ]
    assert ranks == 1 or text_only, "some split must leave a rank without any image"
    for result in results:
        assert result["calls"] == results[0]["calls"] and result["calls"]["vision_encoder"] > 0
    worst = 0.0
    for split, gradient in zip(splits, results[0]["gradients"], strict=True):
        worst = max(worst, largest_difference(gradient, reference_of_split(split)))
    print(f"{len(splits)} splits on {ranks} rank(s), {len(text_only)} with a rank of text alone: largest {worst:.1e}")
    assert worst <= 1e-6


def reference_images(split: int, pack: list[int]) -> bool:
    from tests.engine.numerics import examples_of_split

    examples = examples_of_split(split)
    return any(examples[number][0].num_images for number in pack)


def test_any_split_into_ranks_accumulation_and_packs_gives_the_same_gradient(tmp_path: Path) -> None:
    """Each objective has two of the splits."""
    check_splits(2, list(range(6)), tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("ranks", "count"), [(1, 50), (2, 700), (3, 150), (4, 100)])
def test_a_thousand_random_splits_neither_hang_nor_move_the_gradient(tmp_path: Path, ranks: int, count: int) -> None:
    """A third of the splits leave ranks without images."""
    check_splits(ranks, list(range(1000 * ranks, 1000 * ranks + count)), tmp_path)


@pytest.mark.soak
def test_two_hundred_steps_of_every_zero_stage_equal_plain_pytorch(tmp_path: Path) -> None:
    """Uses a tenth of the other tests' learning rate. At theirs, two runs of plain PyTorch that sum the packs of a step
    in different orders differ by 2e-2 after 60 steps of LoRA, so a comparison would not test the engine."""
    slow: dict[str, Any] = {"more": {"rate": 1e-3}}
    references = {mode: plain_pytorch(mode, 200, 1e-3) for mode in MODES}
    for ranks, stages in ((2, (1, 2, 3)), (1, (0,))):
        cases = [{"mode": mode, "zero": zero, **slow} for mode in MODES for zero in stages]
        for case, results in zip(cases, run_cases(cases, ranks, tmp_path, steps=200), strict=True):
            check_equal(results, references[case["mode"]])
