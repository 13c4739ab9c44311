"""Defines a model with tens of thousands of parameters, an export of it, and random examples for it."""

from pathlib import Path

import numpy as np
import torch

from minigptv2.batch import IGNORE
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import save_untrained
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example

ALL_PARTS = ["vision_encoder", "projector", "language_model"]
VOCABULARY = 100


def tiny_config(trainable: list[str], lora_r: int = 0) -> ModelConfig:
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        lora=LoraConfig(r=lora_r, dropout=0.0),
        trainable=list(trainable),
        attention="packed_sdpa",
    )


def tiny_model(trainable: list[str], lora_r: int = 0, seed: int = 0, *, vocabulary: int = VOCABULARY) -> MiniGPTv2:
    config = tiny_config(trainable, lora_r)
    model = build_model(config, vocabulary)

    def assign(parameter, value):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            parameter.copy_(value())

    fill_weights(model, [], None, assign, seed=seed)
    return model


def save_tiny_export(folder: Path, tokenizer: Path, *, seed: int = 3) -> Path:
    """Write an export of a tiny model with random weights to `folder / "export"`. Returns its folder."""
    config = ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        tokenizer=str(tokenizer),
        lora=LoraConfig(r=0),
        trainable=["projector"],
    )
    return save_untrained(folder / "export", config, seed=seed).folder


def random_examples(count: int, seed: int, *, with_images: bool = True) -> tuple[list[Example], list[np.ndarray]]:
    """Return examples of 12 to 29 tokens, the last few of each supervised, and a 32 px image for each."""
    rng = np.random.default_rng(seed)
    examples, images = [], []
    for _ in range(count):
        length = int(rng.integers(12, 30))
        ids = rng.integers(3, VOCABULARY, length)
        if with_images:
            ids[2:6] = IMAGE_PLACEHOLDER
            images.append(rng.integers(0, 256, (3, 32, 32), dtype=np.uint8))
        labels = np.full(length, IGNORE)
        labels[-5:] = ids[-5:]
        tasks = np.full(length, int(rng.integers(0, 8)))
        examples.append(Example(ids, labels, tasks, int(with_images)))
    return examples, images
