"""Checks the ZeRO backends against DeepSpeed: the private names they use exist, and a missing one is reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.engine.zero import (
    CHECKED_WITH,
    LOSS_SCALE,
    Plain,
    ShardedOptimizer,
    ShardedParameters,
    require_names,
    zero_backend,
)
from minigptv2.errors import ConfigError, MiniGPTv2Error
from tests.conftest import REPOSITORY
from tests.engine.net import ZERO3, batch, make_trainer, mine
from tests.ranks import run_ranks

BF16 = {"bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("stage", "kind"), [(0, Plain), (1, ShardedOptimizer), (2, ShardedOptimizer), (3, ShardedParameters)]
)
def test_each_stage_has_a_backend(stage: int, kind: type) -> None:
    backend = zero_backend({"zero_optimization": {"stage": stage}})
    assert type(backend) is kind and backend.stage == stage and backend.shards_parameters == (stage == 3)


def test_a_config_without_zero_is_stage_0() -> None:
    assert type(zero_backend({})) is Plain


def test_a_zero_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"zero_optimization\.stage must be one of 0, 1, 2, 3, got 4"):
        zero_backend({"zero_optimization": {"stage": 4}})


def test_the_installed_deepspeed_is_the_one_that_was_checked() -> None:
    import deepspeed

    assert deepspeed.__version__ == CHECKED_WITH, "read the private names of the new version, then change CHECKED_WITH"
    assert '"deepspeed>=0.19.8,<0.20"' in (REPOSITORY / "pyproject.toml").read_text()


def look_at_private_names(folder: str, zero: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Return each private name that the backend uses, and whether DeepSpeed's objects have it after a step."""
    trainer = make_trainer(Path(folder), zero, extra=extra)
    trainer.train_step(mine([batch(0, number) for number in range(4)]))
    backend: Any = trainer.zero
    names = (*backend._optimizer_names, backend._flat_name, backend._offload_name, backend._overflow_check)
    missing = [name for name in names if not hasattr(trainer.optimizer, name)]
    for parameter in trainer.trainable.values():
        missing += [name for name in backend._parameter_names if not hasattr(parameter, name)]
        if zero["stage"] < 3:
            mapping = parameter._hp_mapping
            missing += [] if mapping is None or hasattr(mapping, "get_hp_fragment") else ["get_hp_fragment"]
        else:
            missing += [] if parameter.ds_status.name == "NOT_AVAILABLE" else ["NOT_AVAILABLE"]
    return {"missing": missing, "static": backend.loss_scaler is None}


@pytest.mark.parametrize(
    ("zero", "extra"),
    [({"stage": 1}, {}), ({"stage": 2}, BF16), (ZERO3, {}), (ZERO3, BF16)],
    ids=["zero1", "zero2-bf16", "zero3", "zero3-bf16"],
)
def test_deepspeed_has_the_private_names_that_are_used(
    tmp_path: Path, zero: dict[str, Any], extra: dict[str, Any]
) -> None:
    arguments = {"folder": str(tmp_path), "zero": zero, "extra": extra}
    (result,) = run_ranks("tests.engine.test_zero_backend:look_at_private_names", 1, tmp_path, **arguments)
    assert result["missing"] == [], f"gone since DeepSpeed {CHECKED_WITH}; adapt minigptv2/engine/zero.py"
    assert result["static"], "only fp16 scales the loss"


def test_the_loss_scaler_of_fp16_has_the_state_that_checkpoints_keep() -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(2.0**16, 1000, 1.0, 2, False, dtype=torch.float16)
    assert scaler.dynamic and all(hasattr(scaler, name) for name in LOSS_SCALE)


def test_a_missing_private_name_is_reported_with_the_version_to_install() -> None:
    with pytest.raises(
        MiniGPTv2Error, match=rf"object has no attribute averaged_gradients.*=={re.escape(CHECKED_WITH)}"
    ):
        require_names(object(), ("__class__", "averaged_gradients"))


def test_private_names_of_deepspeed_are_used_in_one_module() -> None:
    """Covers `ds_*` of parameters and private names of the optimizer. No other module may branch on the ZeRO stage."""
    private = {name for kind in (ShardedOptimizer, ShardedParameters) for name in _names_of(kind)}
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, sorted(private)))})\b|\bds_[a-z]+\b")
    branch = re.compile(r"\bstage (==|!=|in|not in|<|>|<=|>=) ?[\d(]")
    package = REPOSITORY / "src" / "minigptv2"
    for file in package.rglob("*.py"):
        name = str(file.relative_to(package))
        text = file.read_text()
        if name != "engine/zero.py":
            assert not pattern.search(text), f"{name}: {pattern.search(text)}"
            assert not branch.search(text), f"{name}: {branch.search(text)}"


def _names_of(kind: Any) -> set[str]:
    common = {
        "optimizer",
        "overflow",
        "loss_scale",
        "loss_scaler",
        "partition",
        "all_gather",
    }  # names that other modules use too
    return {*kind._optimizer_names, *kind._parameter_names, kind._flat_name, kind._overflow_check} - common
