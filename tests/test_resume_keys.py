"""Checks what a resumed run may change: every config field declares a rule, and each rule is applied."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from minigptv2.config import Resume, fields_with, flat_values, resume_rule, setting
from minigptv2.data.config import Recipe
from minigptv2.data.plan import SAMPLE_ORDER, load_recipe
from minigptv2.errors import CheckpointError
from minigptv2.model.config import ModelConfig
from minigptv2.run_config import RunConfig, check_resume, load_run_config, rule_of
from minigptv2.train.resume import refuse_other_order
from tests.conftest import REPOSITORY

LOADED = load_run_config(REPOSITORY / "launch" / "configs" / "stage1_pretrain.yaml")
RECIPE = flat_values(asdict(load_recipe(REPOSITORY / LOADED.value.data.recipe)), "recipe.")
FLAT = LOADED.flat | RECIPE | {"deepspeed.bf16.enabled": True}
WHERE = Path("runs/x/checkpoints/step-00000001")
EQUAL = [
    "stage",
    "seed",
    "model.vision_encoder",
    "model.language_model",
    "model.lora.r",
    "model.lora.alpha",
    "model.lora.target_modules",
    "model.trainable",
    "data.max_tokens",
    "train.global_batch_size",
]
CONTENT = [
    "init_from",
    "model.vision_weights",
    "model.language_weights",
    "model.tokenizer",
    "data.recipe",
    "data.shards",
]
MACHINE = ["recompute_layers", "kernels", "compile_vision", "vision_batch", "attention"]
LIMITS = ["recipe.max_bad_in_a_row", "recipe.max_bad_rate"]


@dataclass
class Inner:
    classified: int = setting(1, resume=Resume.FREE)
    forgotten: int = 0


@dataclass
class Outer:
    covered: Inner = setting(Inner, resume=Resume.EQUAL)


def without_rule(schema: type, prefix: str = "") -> list[str]:
    """Leaf fields of a config dataclass that neither have a resume rule nor lie below a field that has one."""
    missing: list[str] = []
    hints = get_type_hints(schema)
    for one in fields(schema):
        if "resume" in one.metadata:
            continue
        nested = isinstance(hints[one.name], type) and is_dataclass(hints[one.name])
        missing += without_rule(hints[one.name], f"{prefix}{one.name}.") if nested else [f"{prefix}{one.name}"]
    return missing


def changed(value: object) -> object:
    return [*value, "x"] if isinstance(value, list) else f"{value}x" if isinstance(value, str) else not value


@pytest.mark.parametrize("schema", [RunConfig, Recipe])
def test_every_field_declares_its_resume_rule(schema: type) -> None:
    assert without_rule(schema) == []


def test_a_field_without_a_rule_is_found() -> None:
    assert without_rule(Inner, "inner.") == ["inner.forgotten"] and without_rule(Outer) == []
    assert resume_rule(Inner, "forgotten") is None and resume_rule(Inner, "unknown") is None
    assert resume_rule(Outer, "covered.forgotten") is Resume.EQUAL


def test_a_mutable_default_is_not_shared() -> None:
    ModelConfig().trainable.append("vision_encoder")
    assert ModelConfig().trainable == ["projector", "lora"]


@pytest.mark.parametrize("key", sorted(FLAT))
def test_every_key_is_treated_by_its_rule(key: str) -> None:
    now = FLAT | {key: changed(FLAT[key])}
    if key in EQUAL or (key in RECIPE and key not in LIMITS):
        assert rule_of(key) is Resume.EQUAL
        with pytest.raises(CheckpointError) as caught:
            check_resume(FLAT, now, WHERE)
        assert f"{key} was {FLAT[key]!r} and is now {now[key]!r}" in str(caught.value)
    else:
        machine = key in [f"model.{name}" for name in MACHINE]
        assert rule_of(key) is (Resume.CONTENT if key in CONTENT else Resume.MACHINE if machine else Resume.FREE)
        assert check_resume(FLAT, now, WHERE) == [f"changed on resume: {key} was {FLAT[key]!r}, is now {now[key]!r}"]


def test_keys_of_another_version_are_logged_but_those_of_a_recipe_refused() -> None:
    assert check_resume(FLAT, FLAT, WHERE) == []
    assert len(check_resume(FLAT, FLAT | {"train.removed_key": 1}, WHERE)) == 1
    with pytest.raises(CheckpointError, match="recipe.removed_key was not set and is now 1"):
        check_resume(FLAT, FLAT | {"recipe.removed_key": 1}, WHERE)


def test_an_export_resets_the_settings_of_the_machine_and_the_plan_covers_the_recipe() -> None:
    assert fields_with(ModelConfig, Resume.MACHINE) == MACHINE
    assert fields_with(Recipe, Resume.EQUAL) == [
        "unit",
        "objective",
        "temperature",
        "tasks",
        "shuffle_window",
        "corpora",
    ]


def checkpoint_of(run: Path, step: int, **identity: object) -> Path:
    """A checkpoint's state with nothing else, as the refusal reads it."""
    known = {"tokenizer_sha256": "a", "data_plan": "b", "seed": 1, "init_from": None, "base_sha256": {}}
    state = {"format": 2, "step": step, "position": 8, "identity": {**known, **identity}, "guard": {}}
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ({5: {}}, "step-00000005: minigptv2 0.1 wrote it, and the order of samples changed in 0.2"),
        ({5: {"sample_order": SAMPLE_ORDER}, 9: {}}, "step-00000009: minigptv2 0.1 wrote it"),
        ({5: {"sample_order": SAMPLE_ORDER + 1}}, "a newer version wrote it; update minigptv2"),
        ({5: {}, 9: {"sample_order": SAMPLE_ORDER}}, ""),
        ({5: {"sample_order": SAMPLE_ORDER}}, ""),
        ({}, ""),
    ],
)
def test_a_run_with_another_order_of_samples_is_refused_before_its_data_is_opened(
    tmp_path: Path, orders: dict[int, dict[str, int]], words: str
) -> None:
    for step, identity in orders.items():
        checkpoint_of(tmp_path, step, **identity)
    config = load_run_config(
        REPOSITORY / "launch/configs/stage1_pretrain.yaml", [f"run_dir={tmp_path}", "data.shards=nowhere"]
    ).value
    if not words:
        refuse_other_order(config)
        return
    with pytest.raises(CheckpointError, match=words) as caught:
        refuse_other_order(config)
    if "0.1" in words:
        assert f"init_from={tmp_path}/export" in str(caught.value) and "--fresh" in str(caught.value)


def test_a_damaged_newest_checkpoint_does_not_hide_the_order_of_the_one_before(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 5)
    (checkpoint_of(tmp_path, 9) / "state.json").write_text("{")
    config = load_run_config(REPOSITORY / "launch/configs/stage1_pretrain.yaml", [f"run_dir={tmp_path}"]).value
    with pytest.raises(CheckpointError, match="step-00000005: minigptv2 0.1 wrote it"):
        refuse_other_order(config)


def test_a_key_that_the_checkpoint_does_not_have_is_not_called_none() -> None:
    old = {key: value for key, value in FLAT.items() if not key.endswith(".sample_by")}
    with pytest.raises(CheckpointError, match=r"recipe\.corpora\.\w+\.sample_by was not set and is now 'turn'"):
        check_resume(old, FLAT, WHERE)
