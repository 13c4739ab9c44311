"""Tests that a folder with incomplete base weights is refused and never completed with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minigptv2.engine.config import load_deepspeed_config
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.model.bases import Base, fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.weights import named_canonical, part_of, read_safetensors


def _assign(parameter: torch.nn.Parameter, value: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        parameter.copy_(value())


def test_a_base_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(vision_encoder="tiny_vit", language_model="tiny_llama", lora=LoraConfig(r=4))
    model = build_model(config, 100)
    parts = [{}, {}]
    for name, parameter in named_canonical(model).items():
        if part_of(name) == "language_model":
            parts["layers.1" in name][name] = torch.full_like(parameter, 0.5)
    files = [tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"]
    for file, tensors in zip(files, parts, strict=True):
        save_file(tensors, str(file))
    whole, cut = (Base("language_model", tmp_path, read_safetensors(some)) for some in (files, files[:1]))
    fill_weights(model, [whole], None, _assign, seed=0)
    with pytest.raises(
        CheckpointError,
        match="no weights for .* of the language_model, first .*layers.1.*Check that all files are there",
    ):
        fill_weights(model, [cut], None, _assign, seed=0)


def test_half_precision_without_zero_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text('{"bf16": {"enabled": true}}')
    with pytest.raises(ConfigError, match="bf16 needs ZeRO stage 1 to 3"):
        load_deepspeed_config(tmp_path / "plain.json")
