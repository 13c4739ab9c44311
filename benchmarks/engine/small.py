"""Builds a small model with the proportions of the real one, and its batches, under any DeepSpeed config."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minigptv2.batch import IGNORE, MicroBatch
from minigptv2.cluster import distributed
from minigptv2.data.collate import collate
from minigptv2.engine.config import TrainConfig, compute_dtype, resolve_deepspeed_config
from minigptv2.engine.trainer import Trainer
from minigptv2.engine.zero import assign, shape_of, zero_backend
from minigptv2.model.backbones import LanguageModelSpec, Sizes, VisionEncoderSpec
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import CPU, build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.costs import ModelCosts
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import named_canonical
from minigptv2.prompt import IMAGE_PLACEHOLDER, Example

VISION = VisionEncoderSpec(image_size=32, patch_size=8, width=48, depth=4, heads=4, mlp_width=192)
LANGUAGE = LanguageModelSpec(width=320, depth=8, heads=8, mlp_width=864, vocab_size=640)
SIZES = Sizes(VISION, LANGUAGE)


def model_config(
    *, r: int = 2, dropout: float = 0.0, trainable: tuple[str, ...] = ("projector", "lora")
) -> ModelConfig:
    """Return the config: projector and LoRA are trained, the rest is frozen, as in the real stages."""
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        lora=LoraConfig(r=r, dropout=dropout),
        trainable=list(trainable),
        attention="packed_sdpa",
    )


def costs(config: ModelConfig, sizes: Sizes = SIZES) -> ModelCosts:
    """Return the cost formulas of the model."""
    return ModelCosts(config, sizes)


def start() -> torch.device:
    """Join the process group. Bytes are counted in torch.distributed, through which DeepSpeed sends everything."""
    torch.set_num_threads(1)
    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    return device


def pieces_of(sizes: Sizes) -> int:
    """Return the vocabulary that these sizes state, or 100 for a language model that takes any."""
    return sizes.language_model.vocab_size or 100


def make_trainer(
    document: dict[str, Any],
    config: ModelConfig,
    device: torch.device,
    *,
    sizes: Sizes = SIZES,
    global_batch: int = 8,
    micro_batch: int = 1,
    recompute: int = 0,
    random_on_device: bool = False,
) -> Trainer:
    """Return our trainer for a DeepSpeed config given as a dict.

    `random_on_device` makes the weights on the device, in its time. Otherwise they are the same on every device.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds.json"
        file.write_text(json.dumps(document))
        train = TrainConfig(
            deepspeed=str(file),
            steps=1000,
            global_batch_size=global_batch,
            micro_batch_size=micro_batch,
            learning_rate=1e-3,
            warmup_steps=2,
        )
        resolved = resolve_deepspeed_config(train, distributed.world_size())
    zero, dtype = zero_backend(resolved), getattr(torch, compute_dtype(resolved))
    whole_on_device = random_on_device and not zero.shards_parameters
    construction = built_on(device, dtype) if whole_on_device else zero.construction()
    model = build_model(config, pieces_of(sizes), construction, sizes=sizes, device=device, dtype=dtype)
    model.recompute(recompute)
    if random_on_device:
        fill_on_device(model.to(device))
    else:
        fill_weights(model, [], None, assign, seed=0, shape_of=shape_of)
    trainer = Trainer(model, named_canonical(model), train, resolved, device=device, seed=0)
    model.restore_float32_buffers()
    return trainer


@contextmanager
def built_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it, modules are built on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def fill_on_device(model: nn.Module) -> None:
    """Draw all matrices at random where they are, also the shards of ZeRO-3. Norms and biases keep their values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if len(shape_of(parameter)) > 1:
                getattr(parameter, "ds_tensor", parameter).normal_(0, 0.02)


def pack(
    samples: int, length: int, *, seed: int = 0, images: bool = True, supervised: int = 8, sizes: Sizes = SIZES
) -> MicroBatch:
    """Return a pack of `samples` samples of `length` tokens, each with an image and labels on the last `supervised`."""
    rng = np.random.default_rng(seed)
    vision, vocabulary = sizes.vision_encoder, pieces_of(sizes)
    examples, pixels = [], []
    for _ in range(samples):
        ids = rng.integers(3, vocabulary, length)
        if images:
            ids[1 : 1 + vision.tokens_per_image] = IMAGE_PLACEHOLDER
            pixels.append(rng.integers(0, 256, (3, vision.image_size, vision.image_size), dtype=np.uint8))
        labels = np.full(length, IGNORE)
        labels[-supervised:] = ids[-supervised:]
        examples.append(Example(ids, labels, np.zeros(length, dtype=np.int64), int(images)))
    return collate(examples, pixels, vision.image_size)


def plain_model(
    config: ModelConfig, *, sizes: Sizes = SIZES, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> MiniGPTv2:
    """Return the same model without DeepSpeed, in `dtype` on `device`."""
    model = build_model(config, pieces_of(sizes), sizes=sizes, device=device, dtype=dtype)
    fill_weights(model, [], None, assign, seed=0)
    model.to(device, dtype)
    model.restore_float32_buffers()
    return model
