"""The whole of a run's config, and the checks that need nothing loaded. No torch: printing a config takes a blink."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from minigptv2.config import MISSING, Loaded, load_config
from minigptv2.data.config import DataConfig
from minigptv2.engine.config import TrainConfig, check_train_config, load_deepspeed_config, shards_parameters
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.heldout.config import EvaluateConfig
from minigptv2.model.backbones import tokens_per_image
from minigptv2.model.config import ModelConfig, check_model_config
from minigptv2.shipped import find


@dataclass
class RunConfig:
    """One stage of training: a recipe, trainable parts, where the weights come from, and how long."""

    stage: str = MISSING
    """Name of the stage, for logs and lineage. Nothing depends on its value."""
    run_dir: str = MISSING
    """Folder of the run: config, logs, checkpoints, export. The same command in a used folder goes on from there."""
    seed: int = 0
    """Fixes initial weights, the data plan and dropout."""
    init_from: str | None = None
    """Export of the stage before, or null to start from the bases (and random weights where there are none)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Looking at it."""


def load_run_config(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Loaded[RunConfig]:
    """The run config in `file` with `key=value` words laid over it."""
    return load_config(RunConfig, file, overrides)


def check_run_config(config: RunConfig, world_size: int) -> None:
    """Raise `ConfigError` for what cannot work on `world_size` processes, before anything is built or loaded."""
    check_model_config(config.model)
    load_deepspeed_config(config.train.deepspeed)
    check_train_config(config.train, world_size)
    sharded = shards_parameters(load_deepspeed_config(config.train.deepspeed))
    if sharded and (config.model.compile_vision or config.model.vision_batch):
        raise ConfigError(
            f"model.compile_vision and model.vision_batch do not go with ZeRO-3 ({config.train.deepspeed}): its hooks "
            "break compiled graphs, and ranks must call the encoder equally often. Take a ZeRO-2 JSON."
        )
    image_tokens = tokens_per_image(config.model.vision_encoder)
    if config.data.max_tokens <= image_tokens:
        raise ConfigError(f"data.max_tokens={config.data.max_tokens} leaves no room beside {image_tokens} image tokens")
    if config.data.max_tokens > config.data.max_pack_tokens:
        raise ConfigError(
            f"data.max_tokens={config.data.max_tokens} is over data.max_pack_tokens={config.data.max_pack_tokens}: "
            "the longest sample must fit a pack"
        )
    if not find(config.data.recipe).is_file():
        raise ConfigError(f"data.recipe={config.data.recipe}: no such file; the shipped ones are in data_recipes/")


MUST_EQUAL = (
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
    "recipe.*",
)
"""Keys that make a run that run: another value on resume is refused, with both."""
SAME_CONTENT = (
    "init_from",
    "model.vision_weights",
    "model.language_weights",
    "model.tokenizer",
    "data.recipe",
    "data.shards",
)
"""Paths: free to move. What lies there is compared by its hash."""
MAY_CHANGE = (
    "run_dir",
    "model.lora.dropout",
    "model.attention",
    "model.recompute_layers",
    "train.rehearse",
    "model.kernels",
    "model.compile_vision",
    "model.vision_batch",
    "data.max_pack_tokens",
    "data.image_cost_tokens",
    "data.attention_cost_tokens",
    "data.num_workers",
    "data.worker_timeout_s",
    "recipe.max_bad_in_a_row",
    "recipe.max_bad_rate",
    "train.deepspeed",
    "train.steps",
    "train.micro_batch_size",
    "train.learning_rate",
    "train.warmup_steps",
    "train.warmup_learning_rate",
    "train.final_learning_rate_ratio",
    "train.betas",
    "train.weight_decay",
    "train.gradient_clipping",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.max_save_stall_s",
    "train.guard.*",
    "train.timeout_minutes",
    "train.time_limit_minutes",
    "train.hang_minutes",
    "train.silence_s",
    "train.crash_loop_limit",
    "evaluate.*",
    "deepspeed.*",
)
"""Keys that may change on resume; each change is logged. `recipe.*` and `deepspeed.*` are those files' contents."""


def rule_for(key: str) -> tuple[str, ...]:
    """Which of the three tables a dotted key belongs to, by its whole name or else by a pattern.

    Raises `ConfigError` for one that nobody classified.
    """
    table = _table_of(key)
    if table is None:
        raise ConfigError(f"{key} is in none of the tables of run_config.py that say what a resumed run may change")
    return table


def _table_of(key: str) -> tuple[str, ...] | None:
    tables = (MUST_EQUAL, SAME_CONTENT, MAY_CHANGE)
    exact = [table for table in tables if key in table]
    return next((t for t in (*exact, *tables) if t in exact or any(fnmatchcase(key, pattern) for pattern in t)), None)


def check_resume(saved: dict[str, Any], current: dict[str, Any], where: Path) -> list[str]:
    """Compare resolved configs by dotted key; returns the changes that are allowed, as lines for the log.

    Raises `CheckpointError` with both values for one that must be equal.
    """
    changes = []
    for key in sorted(saved.keys() | current.keys()):
        before, now = saved.get(key), current.get(key)
        if before == now:
            continue
        if _table_of(key) is MUST_EQUAL:  # a key of another version is in no table
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {before!r} and is now {now!r}. "
                "Use the same as before, another run_dir, or --fresh to start over."
            )
        changes.append(f"changed on resume: {key} was {before!r}, is now {now!r}")
    return changes


def check_identity(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Raise `CheckpointError` for the first content hash that must be equal on resume and is not, with both."""
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {saved.get(key)!r} and is now {current.get(key)!r}. "
                "Use the same as before, another run_dir, or --fresh to start over."
            )
