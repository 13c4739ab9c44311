"""The learning rate, a pure function of the step (section 3: linear warm-up, then cosine)."""

from __future__ import annotations

import math

from minigptv2.engine.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `config.steps`."""
    if step < config.warmup_steps:
        climbed = step / config.warmup_steps
        return config.warmup_learning_rate + climbed * (config.learning_rate - config.warmup_learning_rate)
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    floor = config.learning_rate * config.final_learning_rate_ratio
    return floor + (config.learning_rate - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
