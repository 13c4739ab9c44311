"""Replaces the CUDA kernel of `packed_varlen` with a stand-in of the same signature, so that its callers run here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention


def varlen_attn_stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The causal attention [T, H, d] of torch 2.11's `varlen_attn`, row by row. Refuses what the kernel refuses."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q[-1] == len(query)
    assert query.shape == key.shape == value.shape and query.stride(-1) == 1
    assert window_size == (-1, 0) and max_q == max_k == int(cu_seq_q.diff().max()) and return_aux is None
    bounds = cu_seq_q.tolist()
    rows = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
        rows.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture(autouse=True)
def varlen_on_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        monkeypatch.setattr(varlen, "varlen_attn", varlen_attn_stand_in)
    yield
