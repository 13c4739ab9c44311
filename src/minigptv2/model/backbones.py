"""The model tables: a backbone or a size is one row. Rows build modules of `transformers`, without weights.

Full-size and tiny models are rows of the same tables, so what is tested small is what runs large.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigptv2.errors import ConfigError, nearest

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""RGB mean and standard deviation the published vision encoder was trained with, of pixels in 0..1."""


@dataclass(frozen=True)
class VisionEncoderRow:
    """A pre-norm ViT with class token and absolute positions, as `transformers.Blip2VisionModel` builds it.

    Sizes in pixels and channels. `output_norm_eps` is of the norm after the encoder, which the published model keeps
    at 1e-5 although its blocks use `norm_eps` (published code, `blip2.LayerNorm`).
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    norm_eps: float = 1e-6
    output_norm_eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LanguageModelRow:
    """A LLaMA as `transformers.LlamaForCausalLM` builds it. `vocab_size` None: the tokenizer's."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocab_size: int | None = 32000
    key_value_heads: int | None = None
    max_positions: int = 4096
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


VISION_ENCODERS: dict[str, VisionEncoderRow] = {
    "eva_vit_g": VisionEncoderRow(image_size=448, patch_size=14, width=1408, depth=39, heads=16, mlp_width=6144),
    "toy_vit": VisionEncoderRow(image_size=64, patch_size=16, width=128, depth=2, heads=4, mlp_width=384),
    "tiny_vit": VisionEncoderRow(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_width=64),
}

LANGUAGE_MODELS: dict[str, LanguageModelRow] = {
    "llama2_7b": LanguageModelRow(width=4096, depth=32, heads=32, mlp_width=11008),
    "llama2_13b": LanguageModelRow(width=5120, depth=40, heads=40, mlp_width=13824),
    "toy_llama": LanguageModelRow(
        width=128, depth=3, heads=4, mlp_width=384, vocab_size=None, max_positions=1024
    ),
    "tiny_llama": LanguageModelRow(width=48, depth=2, heads=2, mlp_width=96, vocab_size=None, max_positions=1024),
}  # fmt: skip

TOKENS_PER_GROUP = 4
"""Consecutive vision tokens, in raster order, that are concatenated into one language-model token (section 2.1)."""


def vision_row(name: str) -> VisionEncoderRow:
    """The row of VISION_ENCODERS. Raises `ConfigError` with the nearest name."""
    return _row(VISION_ENCODERS, name, "model.vision_encoder")


def language_row(name: str) -> LanguageModelRow:
    """The row of LANGUAGE_MODELS. Raises `ConfigError` with the nearest name."""
    return _row(LANGUAGE_MODELS, name, "model.language_model")


def tokens_per_image(vision_encoder: str) -> int:
    """Language-model tokens of one image: 256 for EVA ViT-g at 448 px."""
    return vision_row(vision_encoder).num_patches // TOKENS_PER_GROUP


def _row(table, name: str, key: str):  # type: ignore[no-untyped-def]  # one body for two tables
    if name not in table:
        raise ConfigError(
            f"{key}={name} is not a row of the table{nearest(name, list(table))} Rows: {', '.join(table)}"
        )
    return table[name]
