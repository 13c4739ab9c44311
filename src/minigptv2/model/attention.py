"""Attention over a pack: each sample attends to itself alone, causally.

Registered with `transformers`' attention interface as `packed_sdpa`. Samples are laid out as rows of a padded batch
and go through torch's causal SDPA, so one sample cannot reach another by construction, and the cost grows with the
samples' lengths, not with the square of the pack's. Without pack boundaries it is `transformers`' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available

from minigptv2.errors import ConfigError

PACKED_SDPA = "packed_sdpa"
GENERATION = "sdpa"
"""What generation uses: a padded batch with a mask, no packs."""


@dataclass(frozen=True)
class PackLayout:
    """Where the samples of a pack lie. L tokens, S samples, M the longest sample's length.

    `to_rows` int64 [S * M]: token of each cell of the padded [S, M] layout, L for an empty cell.
    `to_pack` int64 [L]: cell of each token. `cu_seqlens` int32 [S + 1]: where samples begin.
    """

    to_rows: Tensor
    to_pack: Tensor
    cu_seqlens: Tensor
    num_samples: int
    max_length: int

    @classmethod
    def of(cls, position_ids: Tensor) -> PackLayout:
        """The layout of a pack whose samples' `position_ids` int64 [1, L] restart at 0."""
        device, length = position_ids.device, position_ids.shape[1]
        starts = torch.nonzero(position_ids[0] == 0).flatten()
        ends = torch.cat([starts[1:], starts.new_tensor([length])])
        num_samples, max_length = len(starts), int((ends - starts).max())
        sample = torch.bucketize(torch.arange(length, device=device), starts, right=True) - 1
        to_pack = sample * max_length + position_ids[0]
        to_rows = torch.full((num_samples * max_length,), length, device=device)
        to_rows[to_pack] = torch.arange(length, device=device)
        cu_seqlens = torch.cat([starts, ends[-1:]]).to(torch.int32)
        return cls(to_rows, to_pack, cu_seqlens, num_samples, max_length)

    def kwargs(self) -> dict[str, Any]:
        """What the language model's forward hands on to any attention that knows packs."""
        return {
            "pack_layout": self,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
        }


def packed_sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    pack_layout: PackLayout | None = None, scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of [1, H, L, d] queries within the samples of `pack_layout`; returns [1, L, H, d]."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    q, k, v = (_to_rows(states, pack_layout) for states in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
    flat = output.transpose(1, 2).reshape(-1, query.shape[1], query.shape[3])
    return flat.index_select(0, pack_layout.to_pack)[None], None


def _to_rows(states: Tensor, layout: PackLayout) -> Tensor:
    """[1, H, L, d] -> [S, H, M, d]; empty cells are zero and, being last in a causal row, are never looked at."""
    tokens = states[0].transpose(0, 1)  # [L, H, d]
    padded = torch.cat([tokens, tokens.new_zeros(1, *tokens.shape[1:])])
    rows = padded.index_select(0, layout.to_rows)
    return rows.view(layout.num_samples, layout.max_length, *tokens.shape[1:]).transpose(1, 2)


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for packs: the layout says it all. A padded batch gets SDPA's."""
    return None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, _packed_mask)


def choose_attention(name: str) -> str:
    """The attention implementation for packs that `model.attention` asks for, checked against this machine."""
    flash = is_flash_attn_2_available() and torch.cuda.is_available()
    if name == "auto":
        return "flash_attention_2" if flash else PACKED_SDPA
    if name == "flash_attention_2" and not flash:
        raise ConfigError("model.attention=flash_attention_2 needs CUDA and flash-attn: pip install 'minigptv2[gpu]'")
    if name not in ("flash_attention_2", PACKED_SDPA):
        raise ConfigError(f"model.attention={name} is not one of auto, flash_attention_2, {PACKED_SDPA}")
    return name
