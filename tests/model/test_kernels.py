"""Tests optional kernels: chosen by what the machine has, refused by name elsewhere, and not part of an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigptv2.config import Resume, fields_with
from minigptv2.errors import ConfigError
from minigptv2.model import attention, kernels
from minigptv2.model.attention import choose_attention
from minigptv2.model.build import CPU
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import ExportContent, load_info, save_export
from minigptv2.model.kernels import choose_kernels, compile_blocks
from minigptv2.run_config import check_run_config, load_run_config
from tests.conftest import REPOSITORY, World
from tests.model.tiny import ALL_PARTS, tiny_config, tiny_model

CUDA = torch.device("cuda")


def test_kernels_that_cannot_run_here_are_refused() -> None:
    assert choose_kernels("torch", CPU) == choose_kernels("auto", CPU) == "torch"
    with pytest.raises(ConfigError, match="is not one of auto, torch, liger"):
        choose_kernels("magic", CPU)
    with pytest.raises(ConfigError, match=r"needs CUDA and liger-kernel: pip install 'minigptv2\[gpu\]'"):
        choose_kernels("liger", CPU)


@pytest.mark.parametrize("flash_attn", [True, False])
def test_kernels_are_chosen_by_where_the_model_computes(monkeypatch: pytest.MonkeyPatch, flash_attn: bool) -> None:
    """A machine with a GPU also runs models on the CPU (`make demo`) and in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash_attn)
    assert choose_kernels("auto", CPU) == "torch" and choose_kernels("auto", CUDA) == "liger"
    assert choose_attention("auto", CPU, torch.bfloat16) == choose_attention("auto", CUDA, torch.float32)
    assert choose_attention("auto", CUDA, torch.float32) == "packed_sdpa"
    assert {choose_attention("auto", CUDA, half) for half in (torch.bfloat16, torch.float16)} == {"packed_varlen"}
    for name in ("flash_attention_2", "packed_varlen"):
        with pytest.raises(ConfigError, match="needs CUDA and bf16 or fp16.*float32 on cuda"):
            choose_attention(name, CUDA, torch.float32)
        with pytest.raises(ConfigError, match="needs CUDA and bf16 or fp16.*bfloat16 on cpu"):
            choose_attention(name, CPU, torch.bfloat16)
    if flash_attn:
        assert choose_attention("flash_attention_2", CUDA, torch.bfloat16) == "flash_attention_2"
    else:
        with pytest.raises(ConfigError, match=r"pip install 'minigptv2\[flash\]'"):
            choose_attention("flash_attention_2", CUDA, torch.bfloat16)


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
