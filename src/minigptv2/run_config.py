"""The whole of a run's config, and the checks that need nothing loaded. No torch: printing a config takes a blink."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.config import MISSING, Loaded, load_config
from minigptv2.data.config import DataConfig
from minigptv2.engine.config import TrainConfig, check_train_config, load_deepspeed_config
from minigptv2.errors import ConfigError
from minigptv2.evaluate.config import EvaluateConfig
from minigptv2.model.backbones import tokens_per_image
from minigptv2.model.config import ModelConfig, check_model_config


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
    image_tokens = tokens_per_image(config.model.vision_encoder)
    if config.data.max_tokens <= image_tokens:
        raise ConfigError(f"data.max_tokens={config.data.max_tokens} leaves no room beside {image_tokens} image tokens")
    if config.data.max_tokens > config.data.max_pack_tokens:
        raise ConfigError(
            f"data.max_tokens={config.data.max_tokens} is over data.max_pack_tokens={config.data.max_pack_tokens}: "
            "the longest sample must fit a pack"
        )
    if not Path(config.data.recipe).is_file():
        raise ConfigError(f"data.recipe={config.data.recipe}: no such file; the shipped ones are in data_recipes/")
