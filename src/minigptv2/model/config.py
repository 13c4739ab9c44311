"""Defines the `model` section of a run's configuration and checks it."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.config import Resume, setting
from minigptv2.errors import ConfigError, nearest
from minigptv2.model.backbones import language_spec, vision_spec

PARTS = ("vision_encoder", "projector", "language_model", "lora")
"""Names of the parts that a stage may train."""


@dataclass
class LoraConfig:
    """Low-rank adapters on the language model. `r: 0` adds none."""

    r: int = setting(64, resume=Resume.EQUAL)
    """Rank, 64 as published; 0 adds no adapters."""
    alpha: int = setting(16, resume=Resume.EQUAL)
    """The update is scaled by alpha / r."""
    dropout: float = setting(0.05, resume=Resume.FREE)
    """Dropout on the adapter's input while training."""
    target_modules: list[str] = setting(["q_proj", "v_proj"], resume=Resume.EQUAL)
    """Linear layers of every block that get an adapter."""


@dataclass
class ModelConfig:
    """The backbones, the sources of their weights, and the trained parts."""

    vision_encoder: str = setting("eva_vit_g", resume=Resume.EQUAL, path=True, environment=True)
    """Name in VISION_ENCODERS (`model/backbones.py`), or a minigptv2 model folder."""
    vision_weights: str | None = setting(None, resume=Resume.CONTENT, path=True, environment=True)
    """minigptv2 model folder with the vision encoder's weights (`minigptv2 convert`); null: those of `init_from`, else
    random, from the seed."""
    language_model: str = setting("llama2_7b", resume=Resume.EQUAL, path=True, environment=True)
    """Name in LANGUAGE_MODELS (`model/backbones.py`), or a Hugging Face LLaMA folder."""
    language_weights: str | None = setting(None, resume=Resume.CONTENT, path=True, environment=True)
    """Hugging Face folder of the language model (safetensors); null: those of `init_from`, else random, from the
    seed."""
    tokenizer: str | None = setting(None, resume=Resume.CONTENT, path=True, environment=True)
    """`tokenizer.model`, `tokenizer.json`, or a folder with one of them; null: that of `init_from`, else of
    `language_weights`. A stage after the first needs the tokenizer that its parent was trained with."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters on the language model."""
    trainable: list[str] = setting(["projector", "lora"], resume=Resume.EQUAL)
    """Trained parts; all others are frozen. Published: projector and lora in all three stages."""
    recompute_layers: int | None = setting(None, resume=Resume.MACHINE)
    """Number of language model layers whose activations are recomputed in the backward pass, which saves memory and
    takes up to 1.4 times as long. null: as few as needed for the fullest pack on a GPU, none on a CPU."""
    kernels: str = setting("auto", resume=Resume.MACHINE)
    """Norms, rotary embedding and SwiGLU of the language model: `liger` (needs CUDA and liger-kernel), `torch`, or
    `auto`, which uses `liger` where it can run."""
    compile_vision: bool = setting(False, resume=Resume.MACHINE)
    """Compile the blocks of the vision encoder with torch.compile. Not with ZeRO-3, whose hooks break every graph."""
    vision_batch: int = setting(0, resume=Resume.MACHINE)
    """Number of images that a frozen vision encoder processes at once; 0: all images of a pack. It lowers the memory of
    packs with many images. Not with ZeRO-3, where all ranks must call the encoder equally often."""
    attention: str = setting("auto", resume=Resume.MACHINE)
    """Attention over packs: `packed_varlen` (torch's kernel for rows of various lengths, needs CUDA and bf16 or fp16),
    `packed_sdpa` (torch, on any device), `flash_attention_2` (needs flash-attn, CUDA and bf16 or fp16; no shared
    images), `packed_flex` (a block mask, needs CUDA), `packed_dense` (slow, for comparison), or `auto`: the first where
    it can run, else the second."""


def check_model_config(config: ModelConfig) -> None:
    """Raise `ConfigError` for unknown backbones or parts, before anything is built."""
    vision_spec(config.vision_encoder)
    language_spec(config.language_model)
    check_parts(config)


def check_parts(config: ModelConfig) -> None:
    """Raise `ConfigError` for parts that cannot be trained."""
    for part in config.trainable:
        if part not in PARTS:
            raise ConfigError(f"model.trainable: unknown part '{part}'{nearest(part, PARTS)} Parts: {', '.join(PARTS)}")
    if "lora" in config.trainable and config.lora.r == 0:
        raise ConfigError("model.trainable contains lora, but model.lora.r is 0. Set model.lora.r or remove lora.")
    if not config.trainable:
        raise ConfigError("model.trainable is empty. Name at least one part to train.")
