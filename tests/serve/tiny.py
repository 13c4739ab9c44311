"""A tiny model to serve, and pictures for it."""

import torch
from PIL import Image

from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import assign_plain
from minigptv2.predict.predictor import Predictor
from minigptv2.tokenizer import Tokenizer


def tiny_predictor(tokenizer: Tokenizer, seed: int = 1) -> Predictor:
    """A predictor whose weights are random: it answers nonsense, always the same."""
    config = ModelConfig(
        vision_encoder="tiny_vit", language_model="tiny_llama", lora=LoraConfig(r=4), trainable=["projector", "lora"]
    )
    model = build_model(config, tokenizer.vocab_size)
    fill_weights(model, [], None, assign_plain, seed=seed)
    return Predictor(model.eval(), tokenizer)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
