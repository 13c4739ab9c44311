"""Tests that losses in chunks and frozen linear layers give the same results and keep less memory."""

from __future__ import annotations

import pytest
import torch
from benchmarks.engine.saved import kept_bytes
from torch import nn
from torch.nn.functional import cross_entropy

from minigptv2.engine.frozen import FrozenLinear, drop_frozen_inputs
from minigptv2.model import head
from minigptv2.model.head import ChunkedHead, chunk_head


def head_and_hidden(trained: bool) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(16, 40, bias=False).requires_grad_(trained)
    return layer, torch.randn(23, 16, requires_grad=True), torch.randint(0, 40, (23,))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 23, 100])
def test_losses_and_gradients_in_chunks_equal_whole_ones(
    monkeypatch: pytest.MonkeyPatch, trained: bool, rows: int
) -> None:
    layer, hidden, targets = head_and_hidden(trained)
    weights = torch.linspace(0.1, 2.0, 23)  # each token's loss can have another weight
    whole = cross_entropy(layer(hidden), targets, reduction="none")
    (whole * weights).sum().backward()
    expected = hidden.grad.clone(), layer.weight.grad
    hidden.grad, layer.weight.grad = None, None
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * 4 * 40)
    chunk_head(layer)
    losses = layer(hidden, targets)
    (losses * weights).sum().backward()
    torch.testing.assert_close(losses, whole)
    torch.testing.assert_close(hidden.grad, expected[0])
    if trained:
        torch.testing.assert_close(layer.weight.grad, expected[1])
    assert torch.equal(layer(hidden), nn.functional.linear(hidden, layer.weight)) and isinstance(layer, ChunkedHead)


@pytest.mark.parametrize("trained", [True, False])
def test_a_chunked_head_keeps_no_logits(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    layer, hidden, targets = head_and_hidden(trained)
    logits = 23 * 40 * 4
    assert kept_bytes(layer, lambda: cross_entropy(layer(hidden), targets), given=[hidden, targets]) >= logits
    chunk_head(layer)
    monkeypatch.setattr(head, "CHUNK_BYTES", 5 * 4 * 40)
    kept = kept_bytes(layer, lambda: layer(hidden, targets), given=[hidden, targets])
    assert kept <= 23 * 16 * 4 * 1.01


def test_a_frozen_linear_gives_the_same_gradient_and_keeps_nothing() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 8, requires_grad=True)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).requires_grad_(False)
    model[2].requires_grad_(True)
    expected = torch.autograd.grad(model(inputs).square().sum(), inputs)[0]
    assert drop_frozen_inputs(model) == 1 and isinstance(model[0], FrozenLinear) and type(model[2]) is nn.Linear
    torch.testing.assert_close(torch.autograd.grad(model(inputs).square().sum(), inputs)[0], expected)
    assert kept_bytes(model[0], lambda: model[0](inputs)) == 0
