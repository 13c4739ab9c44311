"""A run whose recipe weighs the loss: its log, its trackers, a skipped step and its replay, and refused resumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from minigptv2.cli import main as cli
from minigptv2.data.collate import collate
from minigptv2.data.objective import weigh
from minigptv2.engine.bundle import KeptMicroBatch, load_bundle
from minigptv2.errors import StepError
from minigptv2.tracking.log import read_metrics
from minigptv2.train.replay import _run
from tests.conftest import World
from tests.model.tiny import ALL_PARTS, random_examples, tiny_model
from tests.ranks import start_ranks

SHARES = {"toy_refer": 0.6, "toy_conversation": 0.1, "toy_language": 0.3}
RECIPE = """
objective: corpus
corpora:
  toy_refer: {ratio: 2, loss_share: 6, task: refer}
  toy_conversation: {ratio: 1, loss_share: 1, task: mixed}
  toy_language: {ratio: 1, loss_share: 3, task: language}
"""


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objective")
    return world.write_stage(
        folder,
        RECIPE,
        steps=4,
        global_batch_size=48,
        micro_batch_size=12,
        warmup_steps=2,
        checkpoint_every=2,
        log_every=4,
        rehearse=True,
    )


def run(config: Path, *words: str, expect: int = 0) -> str:
    """Run two ranks to the end; returns rank 0's output."""
    processes = start_ranks(config, 2, *words, logs=config.parent)
    codes = [process.wait(240) for process in processes]
    output = (config.parent / "rank0.log").read_text()
    assert codes == [expect] * 2, output[-3000:]
    return output


@pytest.fixture(scope="module")
def finished(config: Path) -> str:
    return run(config)


def test_the_log_states_the_objective_and_its_realised_shares(config: Path, finished: str) -> None:
    assert "objective corpus: every corpus has its loss_share of the gradient" in finished
    assert "target shares of the loss: toy_refer 60.00 %, toy_conversation 10.00 %, toy_language 30.00 %" in finished
    assert re.search(r"supervised tokens per sample: toy_refer \d+\.\d, toy_conversation \d+\.\d, ", finished)
    (line,) = [line for line in finished.splitlines() if "step 4  loss" in line]
    shares = dict(re.findall(r"(\w+) ([\d.]+) %", line.split("| objective ")[1].split("|")[0]))
    assert set(shares) >= {"refer", "language"} and sum(map(float, shares.values())) == pytest.approx(100, abs=0.5)
    metrics = read_metrics(config.parent / "run")[-1]
    assert metrics["objective_share"] == pytest.approx(SHARES, abs=0.05)
    assert metrics["sample_share"] == pytest.approx({"toy_refer": 0.5, "toy_conversation": 0.25, "toy_language": 0.25})
    assert 100 * metrics["objective_share"]["toy_language"] == pytest.approx(float(shares["language"]), abs=0.1)


def test_the_trackers_have_the_shares_of_each_corpus(config: Path, finished: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(config.parent / "run/tensorboard"))
    board.Reload()
    tags = {f"{kind}/{corpus}" for kind in ("objective_share", "sample_share") for corpus in SHARES}
    assert tags <= set(board.Tags()["scalars"])


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "objective: corpus",
            "objective: sample",
            "recipe.corpora.toy_conversation.loss_share was 1.0 and is now None",
        ),
        ("loss_share: 3", "loss_share: 4", "recipe.corpora.toy_language.loss_share was 3.0 and is now 4.0"),
    ],
)
def test_a_run_does_not_resume_under_another_objective(
    config: Path, finished: str, before: str, after: str, words: str
) -> None:
    other = config.parent / "other.yaml"
    text = RECIPE.replace(before, after)
    if "sample" in after:
        text = re.sub(r"loss_share: \d, ", "", text)
    other.write_text(text)
    assert words in run(config, f"data.recipe={other}", "train.steps=6", expect=4)


def test_a_skipped_step_is_replayed_with_its_weights(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 1 overflows. Its bundle and the replay have the weights."""
    folder = config.parent / "overflowing"
    words = [
        f"run_dir={folder}",
        "train.learning_rate=1e20",
        "train.warmup_learning_rate=1e20",
        "train.gradient_clipping=0",
        "train.guard.max_skipped_in_a_row=1",
    ]
    run(config, *words, expect=StepError.exit_code)
    (saved,) = (folder / "bundles").iterdir()
    bundle = load_bundle(saved)
    weights = sum(float(one.inputs["loss_weights"].double().sum()) for one in bundle.micro_batches)
    assert json.loads((saved / "bundle.json").read_text())["weight"] == pytest.approx(weights, rel=1e-9)
    assert cli(["replay", str(saved)]) == 5
    said = capsys.readouterr().out
    assert (
        f"over {bundle.about['supervised']} supervised tokens of weight {weights:.6g}. Loss during the run: nan" in said
    )


def test_a_replayed_micro_batch_has_its_weighted_loss() -> None:
    examples, images = random_examples(3, seed=0)
    weighed = [weigh(example, "corpus", weight) for example, weight in zip(examples, (0.1, 1.0, 5.0), strict=True)]
    model = tiny_model(ALL_PARTS).eval()
    alone = [model(**collate([e], [i], 32).inputs)["loss_sum"].item() for e, i in zip(examples, images, strict=True)]
    expected = sum(weight * loss for weight, loss in zip((0.1, 1.0, 5.0), alone, strict=True)) / (5 * 6.1)
    inputs = dict(collate(weighed, images, 32).inputs)
    kept = KeptMicroBatch(0, 0, inputs, ["a", "b", "c"])  # type: ignore[arg-type]
    found = _run(model, kept, {"seed": 0, "step": 0}, "cpu")
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert found.loss == pytest.approx(expected, rel=1e-5) and not found.bad
    assert found.gradient_norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)) / (5 * 6.1), rel=1e-5)
