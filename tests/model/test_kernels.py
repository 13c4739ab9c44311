"""Tests optional kernels: chosen by what the machine has, refused by name elsewhere, and not part of an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigptv2.config import Resume, fields_with
from minigptv2.errors import ConfigError
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import ExportContent, load_info, save_export
from minigptv2.model.kernels import choose_kernels, compile_blocks
from minigptv2.run_config import check_run_config, load_run_config
from tests.conftest import REPOSITORY, World
from tests.model.tiny import ALL_PARTS, tiny_config, tiny_model


def test_kernels_that_cannot_run_here_are_refused() -> None:
    assert choose_kernels("torch") == "torch"
    assert choose_kernels("auto") == ("liger" if torch.cuda.is_available() else "torch")
    with pytest.raises(ConfigError, match="is not one of auto, torch, liger"):
        choose_kernels("magic")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"needs CUDA and liger-kernel: pip install 'minigptv2\[gpu\]'"):
            choose_kernels("liger")


def test_an_export_of_a_large_machine_loads_on_a_small_one(world: World, tmp_path: Path) -> None:
    config = tiny_config(ALL_PARTS)
    config.kernels, config.attention, config.recompute_layers = "liger", "flash_attention_2", 2
    save_export(tmp_path / "export", ExportContent({}, config, world.tokenizer(), [], {}))
    loaded = load_info(tmp_path / "export").model
    assert all(getattr(loaded, key) == getattr(ModelConfig(), key) for key in fields_with(ModelConfig, Resume.MACHINE))


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_images_in_separate_batches_give_the_same_tokens(at_once: int) -> None:
    model = tiny_model(["projector"])
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    whole = model.encode_images(pixels)
    calls: list[int] = []
    model.vision_encoder.register_forward_hook(lambda *a: calls.append(1))
    model.vision_batch = at_once
    torch.testing.assert_close(model.encode_images(pixels), whole, atol=1e-5, rtol=1e-5)
    assert len(calls) == -(-5 // at_once)


@pytest.mark.parametrize("words", [["model.vision_batch=8"], ["model.compile_vision=true"]])
def test_what_zero3_cannot_do_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_run_config("launch/configs/stage3_instruct.yaml", words).value
    with pytest.raises(ConfigError, match="cannot be used with ZeRO-3"):
        check_run_config(config, 8)
    config.train.deepspeed = "deepspeed_configs/zero2.json"
    check_run_config(config, 8)


@pytest.mark.soak
def test_a_compiled_vision_encoder_gives_the_same_tokens() -> None:
    model = tiny_model(["projector"])
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    eager = model.encode_images(pixels)
    assert compile_blocks(model.vision_encoder) == 2
    torch.testing.assert_close(model.encode_images(pixels), eager, atol=1e-5, rtol=1e-5)
