"""Maps the keys of the published files to the names of this package and back. The published names are here only."""

from __future__ import annotations

import re

VISION = "vision_encoder."
LANGUAGE = "language_model."
PROJECTOR = {"llama_proj.weight": "projector.linear.weight", "llama_proj.bias": "projector.linear.bias"}
FINAL_NORM = {
    "ln_vision.weight": VISION + "post_layernorm.weight",
    "ln_vision.bias": VISION + "post_layernorm.bias",
}
"""The norm after the encoder. The published v2 files do not contain it, other files may."""
PEFT_PREFIX = "base_model.model."
LLAMA_PREFIX = "llama_model." + PEFT_PREFIX

_VIT = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_VIT_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VIT_KEY = re.compile(r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
VIT_BIAS = re.compile(r"blocks\.(\d+)\.attn\.(q|v)_bias")
"""The separate biases of q and v. k has none."""
_LORA_KEY = re.compile(
    re.escape(LLAMA_PREFIX) + r"(?P<module>model\.layers\.\d+\.\w+\.\w+)\.(?P<kind>lora_[AB])(\.default)?\.weight"
)


def vision_name(key: str) -> str | None:
    """The name for a key of the published vision file, or None for a key that does not map to one name."""
    if key in _VIT:
        return VISION + _VIT[key]
    match = _VIT_KEY.fullmatch(key)
    return f"{VISION}encoder.layers.{match[1]}.{_VIT_BLOCK[match[2]]}.{match[3]}" if match else None


def qkv_bias_name(block: int | str) -> str:
    """The name of the joint bias of q, k and v in a block."""
    return f"{VISION}encoder.layers.{block}.self_attn.qkv.bias"


def lora_name(key: str) -> str | None:
    """The name for a published LoRA key, written as by PEFT 0.2 or later. None for other keys."""
    match = _LORA_KEY.fullmatch(key)
    return f"{LANGUAGE}{match['module']}.{match['kind']}.weight" if match else None


def published_name(name: str) -> str | None:
    """The published key for a name, as PEFT 0.2 writes it. None for tensors that published files do not contain."""
    for key, known in (PROJECTOR | FINAL_NORM).items():
        if name == known:
            return key
    if ".lora_A." in name or ".lora_B." in name:
        return LLAMA_PREFIX + name.removeprefix(LANGUAGE)
    return None
