"""Attention over a pack: each sample attends to itself alone, causally.

Registered with `transformers`' attention interface as `packed_sdpa`. Samples are laid out as rows of padded batches,
samples of like length together, and go through torch's causal SDPA, so one sample cannot reach another by construction,
and the cost grows with the samples' lengths, not with the square of the pack's. Without pack boundaries it is
`transformers`' own SDPA.
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


WORTH_SPLITTING = 250_000
"""Cells of attention, rows x longest row squared, below which one padded batch is faster than several."""
LIKE_LENGTH = 0.7
"""A batch of rows holds samples of at least this share of its longest one's length."""


@dataclass(frozen=True)
class PackLayout:
    """Where the samples of a pack lie. L tokens, S samples in padded batches of [rows, length] cells, C cells in all.

    `to_rows` int64 [C]: token of each cell, L for an empty one. `to_pack` int64 [L]: cell of each token.
    `batches`: rows and length of each padded batch, in the order of the cells. `cu_seqlens` int32 [S + 1]: where
    samples begin.
    """

    to_rows: Tensor
    to_pack: Tensor
    batches: tuple[tuple[int, int], ...]
    cu_seqlens: Tensor
    max_length: int

    @classmethod
    def of(cls, position_ids: Tensor) -> PackLayout:
        """The layout of a pack whose samples' `position_ids` int64 [1, L] restart at 0."""
        device, length = position_ids.device, position_ids.shape[1]
        starts = torch.nonzero(position_ids[0] == 0).flatten()
        ends = torch.cat([starts[1:], starts.new_tensor([length])])
        lengths = (ends - starts).tolist()
        batches, first_cells, cells = _rows_of(lengths)
        sample = torch.bucketize(torch.arange(length, device=device), starts, right=True) - 1
        to_pack = torch.tensor(first_cells, device=device)[sample] + position_ids[0]
        to_rows = torch.full((cells,), length, device=device)
        to_rows[to_pack] = torch.arange(length, device=device)
        cu_seqlens = torch.cat([starts, ends[-1:]]).to(torch.int32)
        return cls(to_rows, to_pack, batches, cu_seqlens, max(lengths))

    def kwargs(self) -> dict[str, Any]:
        """What the language model's forward hands on to any attention that knows packs."""
        return {
            "pack_layout": self,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
        }


def _rows_of(lengths: list[int]) -> tuple[tuple[tuple[int, int], ...], list[int], int]:
    """Padded batches as (rows, length), the first cell of each sample, and the number of cells."""
    longest = max(lengths)
    if len(lengths) * longest**2 < WORTH_SPLITTING:
        return ((len(lengths), longest),), [number * longest for number in range(len(lengths))], len(lengths) * longest
    batches: list[tuple[int, int]] = []
    first_cells = [0] * len(lengths)
    cells = 0
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if not batches or lengths[number] < LIKE_LENGTH * batches[-1][1]:
            batches.append((0, lengths[number]))
        rows, length = batches[-1]
        batches[-1] = (rows + 1, length)
        first_cells[number] = cells
        cells += length
    return tuple(batches), first_cells, cells


def packed_sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    pack_layout: PackLayout | None = None, scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of [1, H, L, d] queries within the samples of `pack_layout`; returns [1, L, H, d]."""
    if pack_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
        .transpose(1, 2)
        .reshape(-1, query.shape[1], query.shape[3])
        for q, k, v in zip(*(_to_rows(states, pack_layout) for states in (query, key, value)), strict=True)
    ]
    cells = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return cells.index_select(0, pack_layout.to_pack)[None], None


def _to_rows(states: Tensor, layout: PackLayout) -> list[Tensor]:
    """[1, H, L, d] -> [rows, H, length, d] of each padded batch; empty cells are zero and, being last in a causal row,
    are never looked at."""
    tokens = states[0].transpose(0, 1)  # [L, H, d]
    padded = torch.cat([tokens, tokens.new_zeros(1, *tokens.shape[1:])])
    cells = padded.index_select(0, layout.to_rows).split([rows * length for rows, length in layout.batches])
    return [
        part.view(rows, length, *tokens.shape[1:]).transpose(1, 2)
        for part, (rows, length) in zip(cells, layout.batches, strict=True)
    ]


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
