"""Defines the training section of a run's config and checks it without building a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.config import MISSING, Resume, setting
from minigptv2.config_values import check_finite
from minigptv2.errors import ConfigError
from minigptv2.foreign_files import read_json
from minigptv2.shipped import find
from minigptv2.tracking.trackers import check_trackers

RUN_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "steps_per_print",
)
"""Keys that a DeepSpeed JSON must not set, because the run's YAML sets them."""


@dataclass
class GuardConfig:
    """When a step is skipped, and when skipped steps or unchanged weights stop the run."""

    max_skipped_in_a_row: int = 10
    """Skipped steps in a row after which the run stops. A step is skipped if its loss or gradient is not finite, if
    it is a spike, or if it has no labels."""
    spike_sigma: float = 12.0
    """A step is skipped as a spike if its loss or gradient norm is more than this many standard deviations above the
    mean of the last `spike_window` steps. 0 disables the check. Clipping handles smaller increases."""
    spike_window: int = 128
    """Applied steps that the mean of a spike is taken over. Before that many steps, no step is a spike."""
    keep_bundles: int = 3
    """Number of skipped steps of a run that are saved in `<run_dir>/bundles` for `minigptv2 replay`."""
    movement_steps: int = 10
    """After this many updates of a start, every trainable tensor must have changed and no frozen tensor may have
    changed. 0 disables the check."""


@dataclass
class TrainConfig:
    """Steps, batch sizes, optimizer and log and checkpoint intervals. The DeepSpeed JSON sets ZeRO and precision."""

    deepspeed: str = setting("deepspeed_configs/zero3.json", resume=Resume.FREE, path=True, environment=True)
    """DeepSpeed JSON: ZeRO stage, buckets, offload, precision. It must not set a value of this class."""
    steps: int = setting(MISSING, resume=Resume.FREE)
    """Optimizer steps of the stage."""
    global_batch_size: int = setting(MISSING, resume=Resume.EQUAL)
    """Samples per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int = setting(1, resume=Resume.FREE)
    """Samples per micro-batch of one rank, on average. Packs of long samples hold fewer."""
    learning_rate: float = setting(MISSING, resume=Resume.FREE)
    """Highest learning rate, after warm-up."""
    warmup_steps: int = setting(1000, resume=Resume.FREE)
    """Steps of linear warm-up."""
    warmup_learning_rate: float = setting(1e-6, resume=Resume.FREE)
    """Learning rate of the first step."""
    final_learning_rate_ratio: float = setting(0.1, resume=Resume.FREE)
    """The cosine ends at this share of `learning_rate`."""
    betas: list[float] = setting([0.9, 0.999], resume=Resume.FREE)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = setting(0.05, resume=Resume.FREE)
    """AdamW's weight decay, applied to matrices and not to norms and biases."""
    gradient_clipping: float = setting(1.0, resume=Resume.FREE)
    """Largest global gradient norm."""
    log_every: int = setting(10, resume=Resume.FREE)
    """Steps between log lines."""
    trackers: list[str] = setting(["tensorboard"], resume=Resume.FREE)
    """Experiment trackers: tensorboard, wandb, mlflow, any number at once."""
    checkpoint_every: int = setting(1000, resume=Resume.FREE)
    """Steps between checkpoints. The last step is always saved."""
    keep_checkpoints: int = setting(2, resume=Resume.FREE)
    """Number of newest checkpoints that are kept. At least 2, because the newest one may be damaged."""
    keep_every: int = setting(0, resume=Resume.FREE)
    """Checkpoints at multiples of this many steps are never removed. 0: only the newest are kept."""
    max_save_stall_s: float = setting(60.0, resume=Resume.FREE)
    """Longest time that a step waits until the previous checkpoint is written. After that, the new checkpoint is left
    out and a warning is logged."""
    guard: GuardConfig = setting(GuardConfig, resume=Resume.FREE)
    """When steps are skipped and when the run stops."""
    rehearse: bool | None = setting(None, resume=Resume.FREE)
    """Run the largest pack that the settings allow before the first step and discard the result, so that a GPU with too
    little memory fails at once and not after hours. null: on GPUs only."""
    check_packing: bool = setting(True, resume=Resume.FREE)
    """Check before the first step that packed samples do not influence each other with the kernels of this machine."""
    timeout_minutes: float = setting(60.0, resume=Resume.FREE)
    """Timeout of a collective. Loading and saving need more than the 10 minutes of torch's default."""
    hang_minutes: float = setting(10.0, resume=Resume.FREE)
    """A step that takes longer than this is a hang: the stacks of all threads are written and the job ends."""
    silence_s: float = setting(8.0, resume=Resume.FREE)
    """A rank that sends no heartbeat for this long is lost, and the job ends. Outside of steps the limit is six times
    as long."""
    crash_loop_limit: int = setting(5, resume=Resume.FREE)
    """After this many starts in a row without a newer checkpoint, the next start is refused. 0 disables the check."""
    time_limit_minutes: float = setting(0.0, resume=Resume.FREE)
    """Before this limit, counted from the start, the run saves and exits with the requeue code. 0: no limit. Slurm's
    own limit is read from its environment in addition."""


def zero_stage(deepspeed_config: dict[str, Any]) -> int:
    """Return the ZeRO stage that a DeepSpeed config sets, 0 if it sets none."""
    return int(deepspeed_config.get("zero_optimization", {}).get("stage", 0))


@dataclass(frozen=True)
class ZeroVariant:
    """Says what a ZeRO stage shards among the ranks. Every rank holds a full copy of the rest."""

    shards_optimizer: bool = False
    """The fp32 weights and moments of the trained parameters."""
    shards_gradients: bool = False
    """The gradients."""
    shards_parameters: bool = False
    """The weights of the forward pass, frozen ones included."""


ZERO_VARIANTS = {
    0: ZeroVariant(),
    1: ZeroVariant(shards_optimizer=True),
    2: ZeroVariant(shards_optimizer=True, shards_gradients=True),
    3: ZeroVariant(shards_optimizer=True, shards_gradients=True, shards_parameters=True),
}
"""Each ZeRO stage by its number in a DeepSpeed config."""


def zero_variant(deepspeed_config: dict[str, Any]) -> ZeroVariant:
    """Return what a DeepSpeed config shards. Raises `ConfigError` for a ZeRO stage that does not exist."""
    stage = zero_stage(deepspeed_config)
    if stage not in ZERO_VARIANTS:
        raise ConfigError(f"zero_optimization.stage must be one of {', '.join(map(str, ZERO_VARIANTS))}, got {stage}")
    return ZERO_VARIANTS[stage]


def shards_parameters(deepspeed_config: dict[str, Any]) -> bool:
    """Return whether a DeepSpeed config shards the parameters and not only the optimizer state."""
    return zero_variant(deepspeed_config).shards_parameters


_SECTIONS = ("zero_optimization", "bf16", "fp16")
"""The objects of a DeepSpeed JSON that this package reads."""


def load_deepspeed_config(file: str | Path) -> dict[str, Any]:
    """Return the DeepSpeed JSON. Raises `ConfigError` if it is missing, not valid JSON, or sets one of `RUN_OWNED`."""
    path = find(file)
    if not path.is_file():
        raise ConfigError(f"train.deepspeed={file}: no such file. This package's configs are in deepspeed_configs/")
    document = read_json(path, ConfigError, kind="the JSON of DeepSpeed")
    sections = {"": document} | {
        key: document[key] for key in _SECTIONS if isinstance(document, dict) and key in document
    }
    for key, section in sections.items():
        if not isinstance(section, dict):
            kind = type(section).__name__
            raise ConfigError(f"{file}: {key or 'the file'} must be an object {{name: value}}, got {kind}")
    check_finite(document, str(file), "")
    owned = [key for key in RUN_OWNED if key in document]
    if owned:
        raise ConfigError(f"{file} sets {', '.join(owned)}. Set such numbers in the run's YAML, under train:")
    half = [key for key in ("bf16", "fp16") if document.get(key, {}).get("enabled")]
    if half and not document.get("zero_optimization", {}).get("stage"):
        raise ConfigError(f"{file}: {half[0]} needs ZeRO stage 1 to 3: stage 0 does not expose the fp32 weights")
    if document.get("zero_optimization", {}).get("zero_quantized_nontrainable_weights"):
        raise ConfigError(
            f"{file} sets zero_quantized_nontrainable_weights, which has no effect: DeepSpeed reads it while the "
            "modules are built, before any weight is frozen. Set zero_quantized_weights to gather weights in 8 bits."
        )
    return document


def compute_dtype(deepspeed_config: dict[str, Any]) -> str:
    """Return the name of the dtype in which a DeepSpeed config computes: `bfloat16`, `float16` or `float32`."""
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return next((name for key, name in names.items() if deepspeed_config.get(key, {}).get("enabled")), "float32")


def resolve_deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Return the config that is passed to DeepSpeed: the JSON, completed with the numbers of the run's YAML."""
    return load_deepspeed_config(config.deepspeed) | {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // (config.micro_batch_size * world_size),
        "gradient_clipping": config.gradient_clipping,
        "steps_per_print": 10**9,
    }


def check_train_config(config: TrainConfig, world_size: int) -> None:
    """Raise `ConfigError` for invalid numbers, with valid values. Called before anything is loaded."""
    per_micro_step = config.micro_batch_size * world_size
    if config.micro_batch_size < 1 or config.global_batch_size < 1:
        raise ConfigError("train.global_batch_size and train.micro_batch_size must be at least 1")
    if config.global_batch_size % per_micro_step:
        below = config.global_batch_size // per_micro_step * per_micro_step
        choices = " or ".join(str(n) for n in (below, below + per_micro_step) if n)
        raise ConfigError(
            f"train.global_batch_size={config.global_batch_size} is not a multiple of micro_batch_size="
            f"{config.micro_batch_size} x world_size={world_size} (={per_micro_step}). Set it to {choices}."
        )
    for name in ("steps", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ConfigError(f"train.{name}={getattr(config, name)} must be at least 1")
    check_trackers(config.trackers)
    if config.keep_checkpoints < 2:
        raise ConfigError(f"train.keep_checkpoints={config.keep_checkpoints} must be at least 2: one may be damaged")
    if config.guard.max_skipped_in_a_row < 1 or config.guard.spike_window < 2:
        raise ConfigError("train.guard.max_skipped_in_a_row must be at least 1, train.guard.spike_window at least 2")
    if len(config.betas) != 2:
        raise ConfigError(f"train.betas={config.betas} must be two numbers")
