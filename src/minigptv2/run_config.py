"""Defines the configuration of a run, its checks, and what a resumed run may change. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.config import MISSING, Loaded, Resume, load_config, resume_rule, setting
from minigptv2.data.config import SHORTEST_TEXT_TOKENS, DataConfig, Recipe
from minigptv2.engine.config import TrainConfig, check_train_config, load_deepspeed_config, shards_parameters
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.heldout.config import EvaluateConfig
from minigptv2.model.backbones import LANGUAGE_MODELS, VISION_ENCODERS, tokens_per_image
from minigptv2.model.config import ModelConfig, check_model_config
from minigptv2.model.export_paths import bases_of
from minigptv2.shipped import find
from minigptv2.terminal_text import one_line

FILES = ("data.recipe", "train.deepspeed")
"""The inputs without which no config can be checked. The others may be made later."""


@dataclass
class RunConfig:
    """One stage of training: its data, trainable parts, initial weights and length."""

    stage: str = setting(MISSING, resume=Resume.EQUAL)
    """Name of the stage in logs and lineage."""
    run_dir: str = setting(MISSING, resume=Resume.FREE, environment=True)
    """Folder of the run: config, logs, checkpoints, export. The same command in a used folder resumes the run."""
    seed: int = setting(0, resume=Resume.EQUAL)
    """Seed of initial weights, data plan and dropout."""
    init_from: str | None = setting(None, resume=Resume.CONTENT, path=True, environment=True)
    """Export of the previous stage. null: base weights, and random weights for parts without base weights."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    evaluate: EvaluateConfig = setting(EvaluateConfig, resume=Resume.FREE)
    """Evaluation during training."""


def load_run_config(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Loaded[RunConfig]:
    """The run config in `file` with `key=value` overrides.

    A stage that names no tokenizer or no base weights takes those of the export that it starts from. Raises
    `CheckpointError` if the config of that export is damaged.
    """
    loaded = load_config(RunConfig, file, overrides)
    _check_names(loaded.value)
    if loaded.value.init_from is not None:
        _take_from_parent(loaded, loaded.value.init_from)
    return loaded


def _take_from_parent(loaded: Loaded[RunConfig], export: str) -> None:
    for key, path in {"tokenizer": export, **bases_of(Path(export))}.items():
        if getattr(loaded.value.model, key) is None:
            setattr(loaded.value.model, key, path)
            loaded.flat[f"model.{key}"] = path
            loaded.origins[f"model.{key}"] = loaded.origins["init_from"]


def _check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for a run folder or stage whose name would break lines of logs and of the batch scripts."""
    for key in ("run_dir", "stage"):
        value = getattr(config, key)
        if one_line(value) != value:
            raise ConfigError(f"{key}={one_line(value)} must not contain newlines or other control characters")


def check_places(loaded: Loaded[RunConfig], keys: Collection[str] | None = None) -> None:
    """Raise if an input path of a YAML file was not found, naming the places: `CheckpointError` for `init_from`, else
    `ConfigError`. `keys` limits the check.
    """
    for key, places in loaded.searched.items():
        spec = loaded.flat[key] in (*VISION_ENCODERS, *LANGUAGE_MODELS)
        if (keys is not None and key not in keys) or spec or find(places[-1]).exists():
            continue
        tried = " and ".join(places)
        stage = "" if key != "init_from" else ". Train the previous stage first, or set init_from=null"
        error = CheckpointError if key == "init_from" else ConfigError
        raise error(f"{loaded.origins[key]}: {key}={loaded.flat[key]} does not exist; looked for {tried}{stage}")


def doubts_about(config: RunConfig) -> list[str]:
    """Values that are surely not meant, each as a line for the log. They do not stop a run."""
    train = config.train
    if train.warmup_steps < train.steps:
        return []
    return [
        f"train.warmup_steps={train.warmup_steps} does not end before the run of train.steps={train.steps}, so the "
        f"learning rate only rises, and at most the last step reaches train.learning_rate={train.learning_rate:g}"
    ]


def check_run_config(config: RunConfig, world_size: int) -> None:
    """Raise `ConfigError` for settings that cannot work on `world_size` ranks. Builds and loads nothing."""
    check_model_config(config.model)
    load_deepspeed_config(config.train.deepspeed)
    check_train_config(config.train, world_size)
    sharded = shards_parameters(load_deepspeed_config(config.train.deepspeed))
    if sharded and (config.model.compile_vision or config.model.vision_batch):
        raise ConfigError(
            f"model.compile_vision and model.vision_batch cannot be used with ZeRO-3 ({config.train.deepspeed}): its "
            "hooks break compiled graphs, and ranks must call the encoder equally often. Use a ZeRO-2 JSON."
        )
    _check_lengths(config.data, tokens_per_image(config.model.vision_encoder))
    if not find(config.data.recipe).is_file():
        raise ConfigError(f"data.recipe={config.data.recipe}: no such file. The shipped recipes are in data_recipes/")


def _check_lengths(data: DataConfig, image_tokens: int) -> None:
    if data.max_tokens < SHORTEST_TEXT_TOKENS:
        raise ConfigError(
            f"data.max_tokens={data.max_tokens} must be at least {SHORTEST_TEXT_TOKENS}: it counts the text tokens "
            "of a sample, with those of its prompt"
        )
    longest = data.max_tokens + image_tokens
    if longest > data.max_pack_tokens:
        raise ConfigError(
            f"data.max_tokens={data.max_tokens} text tokens and the {image_tokens} tokens of an image make {longest}, "
            f"more than data.max_pack_tokens={data.max_pack_tokens}: the longest sample must fit a pack. "
            f"Set max_pack_tokens to at least {longest}, or lower max_tokens."
        )


def rule_of(key: str) -> Resume | None:
    """The resume rule of a key of the resolved config, of the recipe (`recipe.*`) or of the DeepSpeed JSON.

    None for a key that this version does not have. Keys of another version's recipe must be equal, too.
    """
    section, _, rest = key.partition(".")
    if section == "recipe":
        return resume_rule(Recipe, rest) or Resume.EQUAL
    return Resume.FREE if section == "deepspeed" else resume_rule(RunConfig, key)


def check_sample_order(saved: int, current: int, run: Path, where: Path) -> None:
    """Raise `CheckpointError` if a version with another order of samples wrote the checkpoint `where` of `run`.

    This check comes before the others: keys of the recipe that the other version did not have explain nothing.
    """
    if saved > current:
        raise CheckpointError(f"cannot resume from {where}: a newer version wrote it; update minigptv2")
    if saved < current:
        raise CheckpointError(
            f"cannot resume from {where}: minigptv2 0.1 wrote it, and the order of samples changed in 0.2. Finish this "
            f"run with minigptv2 0.1, or train from its export in another run_dir (init_from={run}/export), or use "
            "--fresh to start over."
        )


def check_resume(saved: dict[str, Any], current: dict[str, Any], where: Path) -> list[str]:
    """Compare resolved configs by dotted key. Returns the allowed changes as lines for the log.

    Raises `CheckpointError` with both values if a key must be equal and is not.
    """
    changes = []
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) == current.get(key):
            continue
        before, now = _shown(saved, key), _shown(current, key)
        if rule_of(key) is Resume.EQUAL:
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {before} and is now {now}. "
                "Use the same value, another run_dir, or --fresh to start over."
            )
        changes.append(f"changed on resume: {key} was {before}, is now {now}")
    return changes


def _shown(values: dict[str, Any], key: str) -> str:
    """The value of a key for a message. A run that did not have the key (another corpus or version) is not `None`."""
    return repr(values[key]) if key in values else "not set"


def check_identity(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Raise `CheckpointError` with both values of the first content hash that changed."""
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key):
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {saved.get(key)!r} and is now {current.get(key)!r}. "
                "Use the same value, another run_dir, or --fresh to start over."
            )
