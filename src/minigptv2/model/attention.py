"""Implements attention over a pack: a sample attends causally to itself only; pairs sharing an image are separate.

The functions are registered with `transformers`' attention interface. `packed_sdpa` arranges samples of similar length
as rows of padded batches and calls torch's causal SDPA. One sample cannot reach another by construction, and the cost
does not grow with the square of the pack length. A question-answer pair that shares an image is a row that begins with
a copy of the shared part. `packed_flex` (a block mask, for CUDA) and `packed_dense` (a mask of the whole pack, slow but
simple) compute the same. Without pack boundaries all of them are the SDPA of `transformers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available

from minigptv2.errors import ConfigError

PACKED_SDPA, PACKED_FLEX, PACKED_DENSE = "packed_sdpa", "packed_flex", "packed_dense"
FLASH = "flash_attention_2"
GENERATION = "sdpa"
"""The attention for generation, over padded batches with a mask."""


WORTH_SPLITTING = 250_000
"""Attention cells (rows times longest row squared) below which one padded batch is faster than several."""
LIKE_LENGTH = 0.7
"""Shortest row of a padded batch, as a share of its longest row."""


@dataclass(frozen=True)
class PackLayout:
    """The layout of a pack of L tokens: rows in padded batches of [rows, length] cells, C cells in total.

    A row is a sample, or a pair that shares an image, preceded by the shared part. `to_rows` int64 [C] is the token of
    each cell, L for an empty one. `to_pack` int64 [L] is the cell of each token. `batches` has rows and length of each
    padded batch, in the order of the cells. `cu_seqlens` int32 has the start of each sample, and the end. `samples` and
    `branches` int64 [L] are the sample number of each token, and the number of its pair (0 for a common part).
    """

    to_rows: Tensor
    to_pack: Tensor
    batches: tuple[tuple[int, int], ...]
    cu_seqlens: Tensor
    max_length: int
    samples: Tensor
    branches: Tensor

    @classmethod
    def of(cls, position_ids: Tensor) -> PackLayout:
        """Return the layout of a pack with these `position_ids` int64 [1, L], by the rule in `data.collate`.

        A position of 0 begins a sample. Any other position that does not follow the one before it begins a pair that
        shares the tokens of the sample before that position.
        """
        device, positions = position_ids.device, position_ids[0].cpu().numpy()
        length = len(positions)
        starts = np.flatnonzero(positions == 0)
        jumps = 1 + np.flatnonzero((np.diff(positions) != 1) & (positions[1:] != 0))
        samples = np.searchsorted(starts, np.arange(length), side="right") - 1
        branches = np.zeros(length, dtype=np.int64)
        rows: list[np.ndarray] = []
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            inner = jumps[(jumps > start) & (jumps < end)]
            if not len(inner):
                rows.append(np.arange(start, end))
                continue
            shared = int(positions[inner[0]])
            bounds = [start + shared, *inner, end]
            for number, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False), start=1):
                rows.append(np.concatenate([np.arange(start, start + shared), np.arange(first, last)]))
                branches[first:last] = number
        lengths = [len(row) for row in rows]
        batches, first_cells, cells = _rows_of(lengths)
        to_rows = np.full(cells, length)
        to_pack = np.empty(length, dtype=np.int64)
        for row, first in zip(
            reversed(rows), reversed(first_cells), strict=True
        ):  # a shared part is read from the first row
            to_rows[first : first + len(row)] = row
            to_pack[row] = np.arange(first, first + len(row))

        def tensor(values: np.ndarray, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.from_numpy(values).to(device=device, dtype=dtype)

        return cls(
            tensor(to_rows),
            tensor(to_pack),
            batches,
            tensor(np.append(starts, length), torch.int32),
            max(lengths),
            tensor(samples),
            tensor(branches),
        )

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that the language model passes on to attention over packs."""
        return {
            "pack_layout": self,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
        }

    @property
    def shares_images(self) -> bool:
        """Whether some tokens are shared by several pairs."""
        return len(self.to_rows) > 0 and bool((self.branches > 0).any())

    @cached_property
    def mask(self) -> Tensor:
        """bool [L, L]: whether the token of the row may look at the token of the column."""
        index = torch.arange(len(self.samples), device=self.samples.device)
        return self._sees(index[:, None], index[None, :])

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same mask in blocks, for flex attention."""
        length = len(self.samples)
        return create_block_mask(
            lambda batch, head, q, k: self._sees(q, k), None, None, length, length, device=self.samples.device
        )

    def _sees(self, q: Tensor, k: Tensor) -> Tensor:
        common = (self.branches[k] == 0) | (self.branches[k] == self.branches[q])
        return (self.samples[q] == self.samples[k]) & (k <= q) & common


def _rows_of(lengths: list[int]) -> tuple[tuple[tuple[int, int], ...], list[int], int]:
    """Return padded batches as (rows, length), the first cell of each sample, and the number of cells."""
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
    outputs = [
        scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=grouped)
        .transpose(1, 2)
        .reshape(-1, query.shape[1], query.shape[3])
        for q, k, v in zip(*(_to_rows(states, pack_layout) for states in (query, key, value)), strict=True)
    ]
    cells = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return cells.index_select(0, pack_layout.to_pack)[None], None


def _to_rows(states: Tensor, layout: PackLayout) -> list[Tensor]:
    """[1, H, L, d] -> [rows, H, length, d] of each padded batch.

    Empty cells are zero. They are last in a causal row, so that no token attends to them.
    """
    tokens = states[0].transpose(0, 1)  # [L, H, d]
    padded = torch.cat([tokens, tokens.new_zeros(1, *tokens.shape[1:])])
    cells = padded.index_select(0, layout.to_rows).split([rows * length for rows, length in layout.batches])
    return [
        part.view(rows, length, *tokens.shape[1:]).transpose(1, 2)
        for part, (rows, length) in zip(cells, layout.batches, strict=True)
    ]


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return no mask: the layout of a pack defines what each token attends to."""
    return None


PACKED = {PACKED_SDPA: packed_sdpa, PACKED_FLEX: packed_flex, PACKED_DENSE: packed_dense}
"""Attention over packs by its name in `model.attention`."""
for _name, _function in PACKED.items():
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _packed_mask)


def choose_attention(name: str) -> str:
    """Return the implementation for a value of `model.attention`. Raises `ConfigError` if it cannot run here."""
    flash = is_flash_attn_2_available() and torch.cuda.is_available()
    if name == "auto":
        return FLASH if flash else PACKED_SDPA
    if name == FLASH and not flash:
        raise ConfigError(f"model.attention={FLASH} needs CUDA and flash-attn: pip install 'minigptv2[gpu]'")
    if name == PACKED_FLEX and not torch.cuda.is_available():
        raise ConfigError(f"model.attention={PACKED_FLEX} needs CUDA: torch has no backward pass of it on a CPU")
    if name not in (FLASH, *PACKED):
        raise ConfigError(f"model.attention={name} is not one of auto, {FLASH}, {', '.join(PACKED)}")
    return name


def check_layout(attention: str, layout: PackLayout) -> None:
    """Raise `ConfigError` if the attention does not support the pack: flash-attn does not support shared images."""
    if attention not in PACKED and layout.shares_images:
        raise ConfigError(
            f"share_images of the recipe is not supported by model.attention={attention}. "
            f"Set model.attention={PACKED_SDPA} or {PACKED_FLEX}."
        )
