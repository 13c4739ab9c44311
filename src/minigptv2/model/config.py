"""What a run's YAML may say about the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.config import Resume, setting
from minigptv2.errors import ConfigError, nearest
from minigptv2.model.backbones import language_spec, vision_spec

PARTS = ("vision_encoder", "projector", "language_model", "lora")
"""The parts that a stage may train, by name."""


@dataclass
class LoraConfig:
    """Low-rank adapters on the language model. `r: 0` adds none."""

    r: int = setting(64, resume=Resume.EQUAL)
    """Rank; 64 as published. 0: no adapters."""
    alpha: int = setting(16, resume=Resume.EQUAL)
    """The update is scaled by alpha / r."""
    dropout: float = setting(0.05, resume=Resume.FREE)
    """Dropout on the adapter's input while training."""
    target_modules: list[str] = setting(["q_proj", "v_proj"], resume=Resume.EQUAL)
    """Linear layers of every block that get an adapter."""


@dataclass
class ModelConfig:
    """Which backbones, where their weights come from, and what is trained."""

    vision_encoder: str = setting("eva_vit_g", resume=Resume.EQUAL)
    """Row of VISION_ENCODERS in `model/backbones.py`, or a model folder of ours, which states its sizes."""
    vision_weights: str | None = setting(None, resume=Resume.CONTENT)
    """Model folder of ours with the vision encoder's weights (see `minigptv2 convert`); null: random, from the seed."""
    language_model: str = setting("llama2_7b", resume=Resume.EQUAL)
    """Row of LANGUAGE_MODELS in `model/backbones.py`, or a Hugging Face folder of a LLaMA."""
    language_weights: str | None = setting(None, resume=Resume.CONTENT)
    """Hugging Face folder of the language model (safetensors); null: random, from the seed."""
    tokenizer: str | None = setting(None, resume=Resume.CONTENT)
    """`tokenizer.model`, `tokenizer.json`, or a folder with one; null: in `language_weights`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters on the language model."""
    trainable: list[str] = setting(["projector", "lora"], resume=Resume.EQUAL)
    """Parts that are trained; everything else is frozen. Published: projector and lora in all three stages."""
    recompute_layers: int | None = setting(None, resume=Resume.MACHINE)
    """Layers of the language model that the backward pass computes again instead of keeping what they made: less
    memory, up to 1.4 x the time. null: as few as let the fullest pack fit the GPU; none on a CPU."""
    kernels: str = setting("auto", resume=Resume.MACHINE)
    """Norms, rotation and SwiGLU of the language model: `liger` (needs CUDA and liger-kernel), `torch`, or `auto`: the
    first where it can run."""
    compile_vision: bool = setting(False, resume=Resume.MACHINE)
    """Compile the vision encoder's blocks with torch.compile. Not with ZeRO-3, whose hooks leave nothing to gain."""
    vision_batch: int = setting(0, resume=Resume.MACHINE)
    """Images that a frozen vision encoder takes at once, whatever the pack holds; 0: all of a pack. Lowers the memory
    of packs with many images. Not with ZeRO-3, where all ranks must call the encoder equally often."""
    attention: str = setting("auto", resume=Resume.MACHINE)
    """Attention over packs: `flash_attention_2` (needs flash-attn and CUDA; no shared images), `packed_sdpa` (torch,
    anywhere), `packed_flex` (a block mask; needs CUDA), `packed_dense` (slow, to compare with), or `auto`: the first
    where it can run, else the second."""


def check_model_config(config: ModelConfig) -> None:
    """Raise `ConfigError` for unknown rows or parts, before anything is built."""
    vision_spec(config.vision_encoder)
    language_spec(config.language_model)
    check_parts(config)


def check_parts(config: ModelConfig) -> None:
    """Raise `ConfigError` for parts that cannot be trained."""
    for part in config.trainable:
        if part not in PARTS:
            raise ConfigError(f"model.trainable: unknown part '{part}'{nearest(part, PARTS)} Parts: {', '.join(PARTS)}")
    if "lora" in config.trainable and config.lora.r == 0:
        raise ConfigError("model.trainable names lora, but model.lora.r is 0: there is nothing to train")
    if not config.trainable:
        raise ConfigError("model.trainable is empty: there is nothing to train")
