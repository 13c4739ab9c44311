"""Checks what a resumed run may change: every config field declares a rule, and each rule is applied."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from minigptv2.config import Resume, fields_with, flat_values, resume_rule, setting
from minigptv2.data.config import Recipe
from minigptv2.data.plan import load_recipe
from minigptv2.errors import CheckpointError
from minigptv2.model.config import ModelConfig
from minigptv2.run_config import RunConfig, check_resume, load_run_config, rule_of
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
