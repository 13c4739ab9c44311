"""Defines the layout of a pack: rows of attention, the padded batches they are computed in, images and answers.

A row is a sample, or a pair that shares an image with others, preceded by a copy of the shared part. `data.collate`
computes the layout on the host and it travels with the batch: a model that looked into tensors on a device to find it
would wait for the device in every micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minigptv2.batch import IGNORE, copied_to

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

WORTH_SPLITTING = 250_000
"""Attention cells (rows times longest row squared) below which one padded batch is faster than several."""
LIKE_LENGTH = 0.7
"""Shortest row of a padded batch, as a share of its longest row."""


@dataclass(frozen=True)
class PackLayout:
    """The layout of a pack of L tokens in rows of R tokens in total. R exceeds L where rows share tokens.

    Its tensors are parts of `indices` int64, so that one copy brings all of them to a device. `sizes` are their
    lengths. `batches` lists the padded batches as (rows, length), in the order of the cells.
    """

    indices: Tensor
    sizes: tuple[int, ...]
    batches: tuple[tuple[int, int], ...]
    longest_row: int
    longest_sample: int
    shares_images: bool
    """Whether some tokens are shared by several pairs."""

    @classmethod
    def of(cls, position_ids: Tensor, labels: Tensor | None = None, input_ids: Tensor | None = None) -> PackLayout:
        """Return the layout of a pack with these `position_ids` int64 [1, L], by the rule in `data.collate`.

        A position of 0 begins a sample. Any other position that does not follow the one before it begins a pair that
        shares the tokens of the sample before that position. Without `labels` no token is supervised, and without
        `input_ids` none is a placeholder. The result is on the device of `position_ids`. It is computed on the host,
        which waits for tensors of another device.
        """
        positions = position_ids[0].cpu().numpy()
        samples, branches, rows, sample_starts = _rows_of(positions)
        lengths = [len(row) for row in rows]
        batches, first_cells = _batches_of(lengths)
        row_tokens = np.concatenate(rows)
        places = np.empty(len(positions), dtype=np.int64)
        places[row_tokens[::-1]] = np.arange(len(row_tokens))[::-1]  # a shared token is read from its first row
        none = np.empty(0, dtype=np.int64)
        parts = (
            row_tokens,
            places,
            np.concatenate([np.arange(count) + first for count, first in zip(lengths, first_cells, strict=True)]),
            np.array([0, *accumulate(lengths)]),
            sample_starts,
            samples,
            branches,
            none if labels is None else np.flatnonzero(labels[0, 1:].cpu().numpy() != IGNORE),
            none if input_ids is None else np.flatnonzero(input_ids[0].cpu().numpy() < 0),
        )
        return cls(
            indices=torch.from_numpy(np.concatenate(parts)).to(position_ids.device),
            sizes=tuple(len(part) for part in parts),
            batches=batches,
            longest_row=max(lengths),
            longest_sample=int(np.diff(sample_starts).max()),
            shares_images=len(row_tokens) > len(positions),
        )

    def to(self, device: torch.device) -> PackLayout:
        """Return the layout with its tensors on `device`, without waiting for it."""
        return replace(self, indices=copied_to(self.indices, device))

    @cached_property
    def _parts(self) -> Sequence[Tensor]:
        return self.indices.split(self.sizes)

    @property
    def row_tokens(self) -> Tensor:
        """int64 [R]: the token of the pack at each place of the rows."""
        return self._parts[0]

    @property
    def places(self) -> Tensor:
        """int64 [L]: the first place of each token."""
        return self._parts[1]

    @property
    def cells(self) -> Tensor:
        """int64 [R]: the cell of each place in the padded batches."""
        return self._parts[2]

    @cached_property
    def row_starts(self) -> Tensor:
        """int32 [rows + 1]: the start of each row, and the end R."""
        return self._parts[3].to(torch.int32)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 [samples + 1]: the start of each sample, and the end L."""
        return self._parts[4].to(torch.int32)

    @property
    def samples(self) -> Tensor:
        """int64 [L]: the number of the sample of each token."""
        return self._parts[5]

    @property
    def branches(self) -> Tensor:
        """int64 [L]: the number of the pair of each token in its sample, 0 for a common part."""
        return self._parts[6]

    @property
    def supervised(self) -> Tensor:
        """int64 [T]: the tokens that predict a supervised one, which is the token after them."""
        return self._parts[7]

    @property
    def placeholders(self) -> Tensor:
        """int64 [P]: the tokens that are placeholders of image tokens."""
        return self._parts[8]

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
        """[L, ...] values of the tokens -> [R, ...] values at the places of the rows.

        The backward pass of indexing adds the gradients of a shared token in a fixed order. That of `index_select`
        does not on a GPU, so that a resumed run would differ.
        """
        return tokens[self.row_tokens] if self.shares_images else tokens

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
        from torch.nn.attention.flex_attention import create_block_mask  # takes a second, which loaders do not need

        length = len(self.samples)
        return create_block_mask(
            lambda batch, head, q, k: self._sees(q, k), None, None, length, length, device=self.samples.device
        )

    def _sees(self, q: Tensor, k: Tensor) -> Tensor:
        common = (self.branches[k] == 0) | (self.branches[k] == self.branches[q])
        return (self.samples[q] == self.samples[k]) & (k <= q) & common


def _rows_of(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Return `samples`, `branches`, the tokens of each row, and `cu_seqlens`, of the positions int64 [L] of a pack."""
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
    return samples, branches, rows, np.append(starts, length)


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
