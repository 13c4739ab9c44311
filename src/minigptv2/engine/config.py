"""What a run's YAML may say about training, and the checks that need no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigptv2.config import MISSING, Resume, setting
from minigptv2.errors import ConfigError
from minigptv2.shipped import find

RUN_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "steps_per_print",
)
"""Keys of a DeepSpeed JSON whose number belongs to the run's YAML."""


@dataclass
class GuardConfig:
    """What must not reach the weights, and what stops a run."""

    max_skipped_in_a_row: int = 10
    """Discarded steps (a loss or gradient that is not finite, a spike, no labels) in a row that stop the run."""
    spike_sigma: float = 12.0
    """A loss or gradient norm so many standard deviations above the mean of the last `spike_window` steps is discarded;
    0: never. Clipping deals with less."""
    spike_window: int = 128
    """Steps that a spike is measured against; nothing is a spike before there were so many."""
    keep_bundles: int = 3
    """Discarded steps of a run that are kept whole under `<run_dir>/bundles` for `minigptv2 replay`."""
    movement_steps: int = 10
    """After so many steps of a start, every trainable tensor must have moved and no frozen one; 0: not looked at."""


@dataclass
class TrainConfig:
    """Steps, batch sizes, optimizer and the rhythm of logs and checkpoints. ZeRO and precision are in the JSON."""

    deepspeed: str = setting("deepspeed_configs/zero3.json", resume=Resume.FREE)
    """DeepSpeed JSON: ZeRO stage, buckets, offload, precision. It may not set what this class owns."""
    steps: int = setting(MISSING, resume=Resume.FREE)
    """Optimizer steps of the stage."""
    global_batch_size: int = setting(MISSING, resume=Resume.EQUAL)
    """Samples per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int = setting(1, resume=Resume.FREE)
    """Samples per micro-batch of one rank, on average: packs of long samples hold fewer."""
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
    """AdamW's decay of matrices; norms and biases have none."""
    gradient_clipping: float = setting(1.0, resume=Resume.FREE)
    """Largest global gradient norm."""
    log_every: int = setting(10, resume=Resume.FREE)
    """Steps between log lines."""
    checkpoint_every: int = setting(1000, resume=Resume.FREE)
    """Steps between checkpoints; one is always written at the last step."""
    keep_checkpoints: int = setting(2, resume=Resume.FREE)
    """Newest checkpoints that are kept; at least two, so that an older good one remains."""
    keep_every: int = setting(0, resume=Resume.FREE)
    """Checkpoints of every so many steps are never removed; 0: only the newest are kept."""
    max_save_stall_s: float = setting(60.0, resume=Resume.FREE)
    """Longest that a step waits for the writing of the checkpoint before; then the new one is left out, with a word."""
    guard: GuardConfig = setting(GuardConfig, resume=Resume.FREE)
    """The step guard."""
    rehearse: bool | None = setting(None, resume=Resume.FREE)
    """Run the fullest pack that the settings allow before the first step, and forget it: a GPU that is too small fails
    at once, not after hours. null: on GPUs."""
    timeout_minutes: float = setting(60.0, resume=Resume.FREE)
    """How long a collective may wait before the job fails; loading and saving need more than torch's 10 minutes."""

    hang_minutes: float = setting(10.0, resume=Resume.FREE)
    """A step without an end for so long is a hang: every thread's stack is written down and the job ends."""
    silence_s: float = setting(8.0, resume=Resume.FREE)
    """A rank without a heartbeat for so long in a step (six times as long elsewhere) is gone, and the job ends."""
    crash_loop_limit: int = setting(5, resume=Resume.FREE)
    """So many starts in a row that left no newer checkpoint, and the next one is refused; 0: none is."""
    time_limit_minutes: float = setting(0.0, resume=Resume.FREE)
    """Save and leave with the requeue code in time for this limit, counted from the start; 0: none. Slurm's own limit
    is read from its environment as well."""


def zero_stage(deepspeed_config: dict[str, Any]) -> int:
    """Return the ZeRO stage that a DeepSpeed config asks for."""
    return int(deepspeed_config.get("zero_optimization", {}).get("stage", 0))


@dataclass(frozen=True)
class ZeroVariant:
    """What a ZeRO stage divides among the ranks. What it does not, every rank holds whole."""

    shards_optimizer: bool = False
    """The fp32 weights and moments of what is trained."""
    shards_gradients: bool = False
    """The gradients."""
    shards_parameters: bool = False
    """The weights of the forward pass, frozen ones too."""


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
    """Return whether a DeepSpeed config shards the parameters, and not the optimizer state alone."""
    return zero_variant(deepspeed_config).shards_parameters


def load_deepspeed_config(file: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON. Raises `ConfigError` if it is not there, not JSON, or sets a number the run owns."""
    path = find(file)
    if not path.is_file():
        raise ConfigError(f"train.deepspeed={file}: no such file; the shipped ones are in deepspeed_configs/")
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    owned = [key for key in RUN_OWNED if key in document]
    if owned:
        raise ConfigError(f"{file} sets {', '.join(owned)}: such numbers belong to the run's YAML, under train:")
    half = [key for key in ("bf16", "fp16") if document.get(key, {}).get("enabled")]
    if half and not document.get("zero_optimization", {}).get("stage"):
        raise ConfigError(f"{file}: {half[0]} needs ZeRO stage 1 to 3: without one the fp32 masters are out of reach")
    if document.get("zero_optimization", {}).get("zero_quantized_nontrainable_weights"):
        raise ConfigError(
            f"{file} sets zero_quantized_nontrainable_weights, which DeepSpeed reads while modules are made, before "
            "anything is frozen here: it would do nothing. Set zero_quantized_weights: gathers in 8 bits."
        )
    return document


def resolve_deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON with the run's own numbers put in: what DeepSpeed is given."""
    return load_deepspeed_config(config.deepspeed) | {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // (config.micro_batch_size * world_size),
        "gradient_clipping": config.gradient_clipping,
        "steps_per_print": 10**9,
    }


def check_train_config(config: TrainConfig, world_size: int) -> None:
    """Raise `ConfigError` for impossible numbers, with values that would do, before anything is loaded."""
    per_round = config.micro_batch_size * world_size
    if config.micro_batch_size < 1 or config.global_batch_size < 1:
        raise ConfigError("train.global_batch_size and train.micro_batch_size must be at least 1")
    if config.global_batch_size % per_round:
        below = config.global_batch_size // per_round * per_round
        choices = " or ".join(str(n) for n in (below, below + per_round) if n)
        raise ConfigError(
            f"train.global_batch_size={config.global_batch_size} is not a multiple of micro_batch_size="
            f"{config.micro_batch_size} x world_size={world_size} (={per_round}). Set it to {choices}."
        )
    for name in ("steps", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ConfigError(f"train.{name}={getattr(config, name)} must be at least 1")
    if config.keep_checkpoints < 2:
        raise ConfigError(f"train.keep_checkpoints={config.keep_checkpoints} must be at least 2: one may be damaged")
    if config.guard.max_skipped_in_a_row < 1 or config.guard.spike_window < 2:
        raise ConfigError("train.guard.max_skipped_in_a_row must be at least 1, train.guard.spike_window at least 2")
    if len(config.betas) != 2:
        raise ConfigError(f"train.betas={config.betas} must be two numbers")
