"""Sizes of the models that the full-size program writes: the published ones, fewer layers of the same width, tiny."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from minigptv2.model.backbones import LANGUAGE_MODELS, VISION_ENCODERS, LanguageModelSpec, VisionEncoderSpec


@dataclass(frozen=True)
class FullSize:
    """A model in the published file formats.

    `stored_positions` is the side of the square of positions in the ViT file, and `pieces` the size of the tokenizer.
    `published` tells whether the sizes are in this package's tables, so that no option has to state them.
    """

    vision: VisionEncoderSpec
    language: LanguageModelSpec
    lora_rank: int
    stored_positions: int
    pieces: int
    published: bool

    @property
    def conversion_options(self) -> list[str]:
        """What `convert from-published` cannot read from the files."""
        if self.published:
            return []
        vision = self.vision
        stated = {"--vision-heads": vision.heads, "--vision-depth": vision.depth, "--image-size": vision.image_size}
        return [str(word) for pair in {**stated, "--lora-alpha": 16}.items() for word in pair]

    def as_json(self) -> dict[str, Any]:
        """The sizes as plain values."""
        return asdict(self)


FULL = FullSize(VISION_ENCODERS["eva_vit_g"], LANGUAGE_MODELS["llama2_7b"], 64, 16, 32000, True)
"""EVA ViT-g with the positions of 224 px and LLaMA-2-7B."""
TINY = FullSize(
    VisionEncoderSpec(image_size=448, patch_size=56, width=32, depth=2, heads=2, mlp_width=64),
    LanguageModelSpec(width=64, depth=2, heads=4, mlp_width=96, vocab_size=700),
    lora_rank=4,
    stored_positions=4,
    pieces=700,
    published=False,
)
"""Every phase in seconds."""


def with_layers(layers: int) -> FullSize:
    """The published widths with so many layers in both parts."""
    vision, language = replace(FULL.vision, depth=layers), replace(FULL.language, depth=layers)
    return replace(FULL, vision=vision, language=language, published=False)
