"""Tests that a model whose values come from files is built once, in its own dtype, without drawing random values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigptv2.model.build import build_model, without_values
from minigptv2.model.config import LoraConfig, ModelConfig

CPU = torch.device("cpu")


def _config(rank: int) -> ModelConfig:
    trainable = ["projector", "lora"] if rank else ["projector"]
    lora = LoraConfig(r=rank)
    return ModelConfig(vision_encoder="tiny_vit", language_model="tiny_llama", lora=lora, trainable=trainable)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_parameters_have_the_dtype_they_compute_in(dtype: torch.dtype) -> None:
    model = build_model(_config(4), 100, without_values(CPU, dtype), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


class _Draws(TorchDispatchMode):
    """Counts the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(name in str(function) for name in ("normal", "uniform", "rand")):
            self.count += result.numel()
        return result


def test_almost_no_random_number_is_drawn() -> None:
    """`transformers` draws the class token and the positions where it makes them, which nothing can switch off."""
    with _Draws() as usual:
        model = build_model(_config(0), 100)
    with _Draws() as draws:
        build_model(_config(0), 100, without_values(CPU, torch.bfloat16), dtype=torch.bfloat16)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert usual.count > 0.9 * numbers and draws.count < 0.05 * numbers


def test_the_device_is_that_of_the_context() -> None:
    model = build_model(_config(4), 100, without_values(torch.device("meta"), torch.bfloat16))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
