"""Names of the published files' keys and ours, both ways. The only owner of the published spelling."""

from __future__ import annotations

import re

VISION = "vision_encoder."
LANGUAGE = "language_model."
PROJECTOR = {"llama_proj.weight": "projector.linear.weight", "llama_proj.bias": "projector.linear.bias"}
FINAL_NORM = {
    "ln_vision.weight": VISION + "post_layernorm.weight",
    "ln_vision.bias": VISION + "post_layernorm.bias",
}
"""The norm after the encoder: the published v2 files do not hold it, others may."""
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
"""q and v have biases of their own, k has none."""
_LORA_KEY = re.compile(
    re.escape(LLAMA_PREFIX) + r"(?P<module>model\.layers\.\d+\.\w+\.\w+)\.(?P<kind>lora_[AB])(\.default)?\.weight"
)


def vision_name(key: str) -> str | None:
    """Our name of a key of the published vision file, None if it is not one that maps by itself."""
    if key in _VIT:
        return VISION + _VIT[key]
    match = _VIT_KEY.fullmatch(key)
    return f"{VISION}encoder.layers.{match[1]}.{_VIT_BLOCK[match[2]]}.{match[3]}" if match else None


def qkv_bias_name(block: int | str) -> str:
    """Our name of the joint bias of q, k and v."""
    return f"{VISION}encoder.layers.{block}.self_attn.qkv.bias"


def lora_name(key: str) -> str | None:
    """Our name of a published LoRA key, in PEFT 0.2's spelling or the newer one; None for other keys."""
    match = _LORA_KEY.fullmatch(key)
    return f"{LANGUAGE}{match['module']}.{match['kind']}.weight" if match else None


def published_name(name: str) -> str | None:
    """The published key (PEFT 0.2's spelling) of one of our names; None if published files do not hold it."""
    for key, ours in (PROJECTOR | FINAL_NORM).items():
        if name == ours:
            return key
    if ".lora_A." in name or ".lora_B." in name:
        return LLAMA_PREFIX + name.removeprefix(LANGUAGE)
    return None
