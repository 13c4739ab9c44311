"""Implements attention over a pack: a sample attends causally to itself only; pairs sharing an image are separate.

The functions are registered with `transformers`' attention interface. `packed_sdpa` arranges samples of similar length
as rows of padded batches and calls torch's causal SDPA. `packed_varlen` calls torch's kernel for rows of various
lengths, which needs CUDA and half precision. In both, one sample cannot reach another by construction, and the cost
does not grow with the square of the pack length. `packed_flex` (a block mask, for CUDA) and `packed_dense` (a mask of
the whole pack, slow but simple) compute the same. Without pack boundaries all of them are the SDPA of `transformers`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from minigptv2.errors import ConfigError
from minigptv2.pack_layout import PackLayout

PACKED_SDPA, PACKED_VARLEN, PACKED_FLEX, PACKED_DENSE = "packed_sdpa", "packed_varlen", "packed_flex", "packed_dense"
FLASH = "flash_attention_2"
GENERATION = "sdpa"
"""The attention for generation, over padded batches with a mask."""
CAUSAL = (-1, 0)
"""The window of `varlen_attn` in which a token attends to all tokens of its row up to itself."""


def packed_dense(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack_layout: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the same as `packed_sdpa` with a mask of the whole pack."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=pack_layout.mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2), None


def packed_flex(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack_layout: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the same as `packed_sdpa` with a block mask, compiled on CUDA. On CPUs only the forward pass works."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    attend = _compiled_flex() if query.is_cuda else flex_attention
    output = attend(query, key, value, block_mask=pack_layout.block_mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2), None


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack_layout: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention [1, L, H, d] of queries [1, H, L, d] within the samples of `pack_layout`."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    rows = [pack_layout.rows_of(states[0].transpose(0, 1)) for states in (query, key, value)]  # [R, H, d] each
    outputs = []
    for batch in zip(*(pack_layout.to_batches(states) for states in rows), strict=True):
        q, k, v = (states.transpose(1, 2) for states in batch)  # [rows, H, length, d]
        # Empty cells are last in a causal row, so that no token attends to them.
        output = scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
        outputs.append(output.transpose(1, 2))
    return pack_layout.tokens_of(pack_layout.from_batches(outputs))[None], None


def packed_varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pack_layout: PackLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the same as `packed_sdpa` with torch's kernel for rows of various lengths, in half precision on CUDA."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise ValueError(f"{PACKED_VARLEN} has no attention dropout, got {dropout}")
    q, k, v = (pack_layout.rows_of(states[0].transpose(0, 1)) for states in (query, key, value))
    groups = q.shape[1] // k.shape[1]  # torch 2.11 has no grouped heads
    if groups > 1:
        k, v = (states.repeat_interleave(groups, dim=1) for states in (k, v))
    starts, longest = pack_layout.row_starts, pack_layout.longest_row
    output = varlen.varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=CAUSAL)
    assert isinstance(output, Tensor), "a tuple only with return_aux"
    return pack_layout.tokens_of(output)[None], None


PACKED = {
    PACKED_SDPA: packed_sdpa,
    PACKED_VARLEN: packed_varlen,
    PACKED_FLEX: packed_flex,
    PACKED_DENSE: packed_dense,
}
"""Attention over packs by its name in `model.attention`.

No mask function is registered for them, so that `transformers` makes no mask. To decide which mask a registered one
needs, it looks into the position ids, for which the host waits in every micro-batch.
"""
for _name, _function in PACKED.items():
    AttentionInterface.register(_name, _function)


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the implementation for a value of `model.attention` of a model that computes in `dtype` on `device`.

    Raises `ConfigError` if it cannot run there.
    """
    half = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        return PACKED_VARLEN if half else PACKED_SDPA
    if name not in (FLASH, *PACKED):
        raise ConfigError(f"model.attention={name} is not one of auto, {FLASH}, {', '.join(PACKED)}")
    if name in (FLASH, PACKED_VARLEN) and not half:
        raise ConfigError(
            f"model.attention={name} needs CUDA and bf16 or fp16, and this model computes in {dtype_name(dtype)} on "
            f"{device.type}. Set it to auto or {PACKED_SDPA}."
        )
    if name == FLASH and not is_flash_attn_2_available():
        raise ConfigError(f"model.attention={FLASH} needs flash-attn: pip install 'minigptv2[flash]' (docs/start.md)")
    if name == PACKED_FLEX and device.type != "cuda":
        raise ConfigError(f"model.attention={PACKED_FLEX} needs CUDA: torch has no backward pass of it on a CPU")
    return name


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without `torch.`."""
    return str(dtype).removeprefix("torch.")


def check_shared_images(attention: str) -> None:
    """Raise `ConfigError` if the attention cannot compute packs in which pairs share an image."""
    if attention not in PACKED:
        raise ConfigError(
            f"share_images of the recipe is not supported by model.attention={attention}. "
            f"Set model.attention to auto, {PACKED_SDPA} or {PACKED_FLEX}, or share_images to 1."
        )
