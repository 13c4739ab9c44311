"""Defines the optimizer: AdamW groups, the learning rate of a step, and the dropout seed of a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from minigptv2.engine.config import TrainConfig
from minigptv2.engine.zero import shape_of


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step` (0-based): linear warm-up, then cosine decay to the last step."""
    if step < config.warmup_steps:
        progress = step / config.warmup_steps
        return config.warmup_learning_rate + progress * (config.learning_rate - config.warmup_learning_rate)
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    final = config.learning_rate * config.final_learning_rate_ratio
    return final + (config.learning_rate - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def adamw(trainable: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices and none on norms, biases and other vectors."""
    matrices = [p for p in trainable.values() if len(shape_of(p)) > 1]
    vectors = [p for p in trainable.values() if len(shape_of(p)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=betas)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's dropout in a step, so that a resumed or replayed step draws the same numbers."""
    return hash((seed, step, rank)) & 0x7FFFFFFF
