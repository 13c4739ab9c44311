"""Defines the layout of a pack for attention: which tokens form a row, and which padded batches rows are computed in.

A row is a sample, or a pair that shares an image with others, preceded by a copy of the shared part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

WORTH_SPLITTING = 250_000
"""Attention cells (rows times longest row squared) below which one padded batch is faster than several."""
LIKE_LENGTH = 0.7
"""Shortest row of a padded batch, as a share of its longest row."""


@dataclass(frozen=True)
class PackLayout:
    """The layout of a pack of L tokens in rows of R tokens in total. R exceeds L where rows share tokens.

    `row_tokens` int64 [R] is the token of the pack at each place of the rows, and `places` int64 [L] the first place
    of each token. `row_starts` int32 has the start of each row, and the end R. `cells` int64 [R] is the cell of each
    place in padded batches, which `batches` lists as (rows, length) in the order of the cells. `cu_seqlens` int32 has
    the start of each sample, and the end L. `samples` and `branches` int64 [L] are the sample number of each token, and
    the number of its pair (0 for a common part).
    """

    row_tokens: Tensor
    places: Tensor
    row_starts: Tensor
    longest_row: int
    cells: Tensor
    batches: tuple[tuple[int, int], ...]
    cu_seqlens: Tensor
    longest_sample: int
    samples: Tensor
    branches: Tensor
    shares_images: bool
    """Whether some tokens are shared by several pairs."""

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
        batches, first_cells = _batches_of(lengths)
        row_tokens = np.concatenate(rows)
        places = np.empty(length, dtype=np.int64)
        places[row_tokens[::-1]] = np.arange(len(row_tokens))[::-1]  # a shared token is read from its first row

        def tensor(values: np.ndarray, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.from_numpy(values).to(device=device, dtype=dtype)

        sample_starts = np.append(starts, length)
        return cls(
            row_tokens=tensor(row_tokens),
            places=tensor(places),
            row_starts=tensor(np.array([0, *accumulate(lengths)]), torch.int32),
            longest_row=max(lengths),
            cells=tensor(
                np.concatenate([np.arange(count) + first for count, first in zip(lengths, first_cells, strict=True)])
            ),
            batches=batches,
            cu_seqlens=tensor(sample_starts, torch.int32),
            longest_sample=int(np.diff(sample_starts).max()),
            samples=tensor(samples),
            branches=tensor(branches),
            shares_images=len(row_tokens) > length,
        )

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that the language model passes on to attention over packs."""
        return {
            "pack_layout": self,
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.longest_sample,
            "max_length_k": self.longest_sample,
        }

    def rows_of(self, tokens: Tensor) -> Tensor:
        """[L, ...] values of the tokens -> [R, ...] values at the places of the rows."""
        return tokens.index_select(0, self.row_tokens) if self.shares_images else tokens

    def tokens_of(self, rows: Tensor) -> Tensor:
        """[R, ...] values at the places of the rows -> [L, ...] values of the tokens."""
        return rows.index_select(0, self.places) if self.shares_images else rows

    def to_batches(self, rows: Tensor) -> list[Tensor]:
        """[R, ...] values at the places of the rows -> [rows, length, ...] of each padded batch, with empty cells zero.

        Cells are written and not gathered, so that the backward pass is a gather. A gather of empty cells from one
        place would add their gradients there, in an order that differs between runs on a GPU. `index_copy` would keep
        the rows for the backward pass, and `index_put` does not.
        """
        sizes = [count * length for count, length in self.batches]
        cells = rows.new_zeros(sum(sizes), *rows.shape[1:]).index_put((self.cells,), rows)
        parts = zip(cells.split(sizes), self.batches, strict=True)
        return [part.view(count, length, *rows.shape[1:]) for part, (count, length) in parts]

    def from_batches(self, batches: list[Tensor]) -> Tensor:
        """[rows, length, ...] of each padded batch -> [R, ...] values at the places of the rows."""
        cells = [batch.flatten(0, 1) for batch in batches]
        return (cells[0] if len(cells) == 1 else torch.cat(cells)).index_select(0, self.cells)

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


def _batches_of(lengths: list[int]) -> tuple[tuple[tuple[int, int], ...], list[int]]:
    """Return padded batches as (rows, length), and the first cell of each row."""
    longest = max(lengths)
    if len(lengths) * longest**2 < WORTH_SPLITTING:
        return ((len(lengths), longest),), [number * longest for number in range(len(lengths))]
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
    return tuple(batches), first_cells
