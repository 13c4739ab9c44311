"""Tests evaluation during training: under ZeRO-3, losses and expected IoU without generation, the best model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minigptv2.errors import ConfigError
from minigptv2.heldout.config import EvaluateConfig
from minigptv2.heldout.monitor import PeriodicEvaluator, best_until
from minigptv2.heldout.slice import BestMetric, EvaluationResult, HeldOutSlice, digit_ids, expected_iou
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import assign_plain
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case
from minigptv2.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import REPOSITORY, World
from tests.ranks import run_ranks

CORPORA = ["toy_refer", "toy_language", "toy_vqa"]


def settings(world_val: str) -> EvaluateConfig:
    return EvaluateConfig(shards=world_val, corpora=CORPORA, samples=2, questions=3, loss_samples=3, max_new_tokens=24)


def config() -> ModelConfig:
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        lora=LoraConfig(r=0),
        trainable=["vision_encoder", "projector", "language_model"],
    )


def plain_model(tokenizer: Tokenizer) -> MiniGPTv2:
    model = build_model(config(), tokenizer.vocab_size)
    fill_weights(model, [], None, assign_plain, seed=3)
    return model


def report_of(heldout: HeldOutSlice) -> dict[str, Any]:
    """What a rank reports: answers, metrics, image sizes and losses."""
    answers: dict[int, str] = {}
    keep = heldout._result
    heldout._result = lambda found: answers.update(found) or keep(found)  # type: ignore[method-assign,func-returns-value]
    result = heldout.evaluate()
    images = {name: list(image.shape) for name, image in result.images.items()}
    return {
        "answers": sorted(answers.items()),
        "metrics": result.metrics,
        "images": images,
        "losses": heldout.losses(),
    }


def in_rank(*, val: str, tokenizer: str, eos: int) -> dict[str, Any]:
    """What each rank of the ZeRO-3 test runs: the same model, sharded, with the slice divided over the ranks."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.config import TrainConfig, resolve_deepspeed_config
    from minigptv2.engine.trainer import Trainer
    from minigptv2.engine.zero import assign, shape_of, zero_backend
    from minigptv2.model.weights import named_canonical

    device = distributed.choose_device()
    distributed.start_process_group(device, 2)
    words = load_tokenizer(tokenizer)
    train = TrainConfig(
        deepspeed=str(REPOSITORY / "deepspeed_configs/zero3_cpu.json"), steps=1, global_batch_size=2, learning_rate=1e-3
    )
    deepspeed_config = resolve_deepspeed_config(train, distributed.world_size())
    model = build_model(config(), words.vocab_size, zero_backend(deepspeed_config).construction())
    fill_weights(model, [], None, assign, seed=3, shape_of=shape_of)
    Trainer(model, named_canonical(model), train, deepspeed_config, device=device, seed=0)
    words.eos_id = eos  # a token that ends some answers at once and others never
    predictor = Predictor(model, words, synced_ranks=True)
    return report_of(HeldOutSlice(settings(val), predictor, max_pack_tokens=200))


def test_two_ranks_under_zero_3_answer_as_one_process_for_answers_of_any_length(
    world: World, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    words = load_tokenizer(world.tokenizer_folder)
    predictor = Predictor(plain_model(words), words)
    eos = a_token_that_ends_some_answers(predictor, settings(str(world.val)))
    words.eos_id = eos
    alone = report_of(HeldOutSlice(settings(str(world.val)), predictor, max_pack_tokens=200))
    lengths = [len(words.encode(text)) for _, text in alone["answers"]]
    assert min(lengths) < 8 and max(lengths) > 16, "the answers must differ in length, or this shows little"
    main, other = run_ranks(
        "tests.heldout.test_slice:in_rank",
        2,
        tmp_path,
        val=str(world.val),
        tokenizer=str(world.tokenizer_folder),
        eos=eos,
    )
    assert [list(pair) for pair in alone["answers"]] == main["answers"]
    assert main["metrics"] == alone["metrics"] and main["images"] == alone["images"]
    assert (other["metrics"], other["answers"]) == ({}, [])
    for found in (main["losses"], other["losses"]):
        for corpus, figures in alone["losses"].items():
            assert found[corpus] == pytest.approx(figures, abs=1e-4)


def a_token_that_ends_some_answers(predictor: Predictor, wanted: EvaluateConfig) -> int:
    """A token that occurs early in some answers of the random model and not in others."""
    heldout = HeldOutSlice(wanted, predictor, max_pack_tokens=200)
    generate, made = predictor._generate, []
    predictor._generate = lambda *a, **k: made.append(generate(*a, **k)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    heldout.evaluate()
    predictor._generate = generate  # type: ignore[method-assign]
    rows = [row.tolist() for row in made[0]]

    def spread(token: int) -> int:
        firsts = [row.index(token) if token in row else len(row) for row in rows]
        return max(firsts) - min(firsts)

    return max({token for row in rows for token in row}, key=spread)


def test_held_out_losses_are_those_of_scoring(world: World, tokenizer: Tokenizer) -> None:
    predictor = Predictor(plain_model(tokenizer), tokenizer)
    heldout = HeldOutSlice(settings(str(world.val)), predictor, max_pack_tokens=200)
    found = heldout.losses()
    for corpus in CORPORA:
        items = [item for item in heldout._loss_items if item.corpus == corpus]
        scores = predictor.score(
            [Case(((i.question, i.answer),), (i.image,) if i.image is not None else ()) for i in items]
        )
        nll = [value for score in scores for value in score.nll]
        assert found[corpus]["loss"] == pytest.approx(sum(nll) / len(nll), abs=1e-4)
    assert set(found["toy_refer"]) == {"loss", "expected_iou"} and set(found["toy_vqa"]) == {"loss"}
    assert 0.0 <= found["toy_refer"]["expected_iou"] < 0.5


@pytest.mark.parametrize(("sureness", "low", "high"), [(50.0, 0.9, 1.0), (3.0, 0.02, 0.9), (0.0, 0.0, 0.2)])
def test_expected_iou_grows_with_how_sure_the_model_is_of_the_truth(
    world: World, tokenizer: Tokenizer, sureness: float, low: float, high: float
) -> None:
    predictor = Predictor(plain_model(tokenizer), tokenizer)
    item = HeldOutSlice(settings(str(world.val)), predictor, max_pack_tokens=200)._loss_items[0]
    targets = torch.tensor([*tokenizer.encode(item.answer), tokenizer.eos_id])
    logits = torch.zeros(len(targets), tokenizer.vocab_size)
    logits[torch.arange(len(targets)), targets] = sureness
    found = expected_iou(logits, targets, digit_ids(tokenizer), item, tokenizer)
    assert low <= found <= high


def test_digits_of_a_box_are_found_where_each_has_an_id(tokenizer: Tokenizer) -> None:
    digits = digit_ids(tokenizer)
    assert sorted(digits.values()) == [str(number) for number in range(10)]
    found = [digits.get(one, "") for one in tokenizer.encode("{<12><34><56><100>}")]
    assert "".join(found) == "123456100"


def test_the_best_is_by_the_named_metric_and_a_loss_is_best_when_low(tmp_path: Path) -> None:
    best = BestMetric("a/recall_50", {"a"})
    assert [best.update({"a": {"recall_50": value}}) for value in (0.1, 0.3, 0.2, 0.3)] == [True, True, False, False]
    lowest = BestMetric("a/loss", {"a"})
    assert not lowest.update({"a": {"loss": math.nan}}) and lowest.value is None
    assert [lowest.update({"a": {"loss": value}}) for value in (2.0, 3.0, 1.0)] == [True, False, True]
    with pytest.raises(ConfigError, match="keep_best=b/x: expected <corpus>/<metric> with a corpus from"):
        BestMetric("b/x", {"a"})
    with pytest.raises(ConfigError, match="the metrics of a are recall_50"):
        BestMetric("a/x", {"a"}).update({"a": {"recall_50": 0.1}})
    file = tmp_path / "best.json"
    file.write_text(json.dumps([{"step": s, "metric": "a/x", "value": v} for s, v in ((2, 0.1), (4, 0.2), (6, 0.5))]))
    assert best_until(file, "a/x", 5) == 0.2 and best_until(file, "a/x", 6) == 0.2  # what came later is forgotten
    assert best_until(tmp_path / "none.json", "a/x", 5) is None


def test_the_best_can_be_by_a_held_out_loss(tmp_path: Path) -> None:
    losses, kept = iter((2.0, 3.0, 1.0)), []
    heldout: Any = SimpleNamespace(
        best=BestMetric("a/loss", {"a"}),
        evaluate=lambda: EvaluationResult({"a": {"recall_50": 0.5}}),
        losses=lambda: {"a": {"loss": next(losses)}},
    )
    quiet: Any = SimpleNamespace(**dict.fromkeys(("set_phase", "line", "heldout", "images"), lambda *_: None))
    export: Any = kept.append
    evaluator = PeriodicEvaluator(heldout, tmp_path, export, quiet, quiet, start=0)
    for step in (1, 2, 3):
        evaluator.evaluate(step)
    assert len(kept) == 2
    assert [row["step"] for row in json.loads((tmp_path / "best.json").read_text())] == [1, 3]


def test_images_show_the_samples_to_be_drawn(world: World, tokenizer: Tokenizer) -> None:
    heldout = HeldOutSlice(settings(str(world.val)), Predictor(plain_model(tokenizer), tokenizer), max_pack_tokens=200)
    result = heldout.evaluate()
    assert set(result.images) == {f"heldout/{corpus}" for corpus in CORPORA}
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in result.images.values())
    assert set(result.metrics["toy_refer"]) >= {"recall_50", "mean_iou", "well_formed"}
