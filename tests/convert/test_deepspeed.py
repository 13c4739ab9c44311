"""Tests the conversion of folders that DeepSpeed's `save_checkpoint` writes on two ranks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from minigptv2.convert.deepspeed import from_deepspeed
from minigptv2.convert.zero_shards import consolidated
from minigptv2.errors import CheckpointError
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import load_export
from minigptv2.model.weights import read_safetensors
from minigptv2.tokenizer import Tokenizer
from tests.convert.test_formats import write_stock_llama
from tests.ranks import run_ranks


def train_and_save(model: dict[str, Any], stage: int, folder: str) -> dict[str, float]:
    """Two steps of a LoRA stage on a LLaMA base, then DeepSpeed's own checkpoint; checksums of the fp32 weights."""
    from minigptv2.cluster import distributed
    from minigptv2.engine.config import TrainConfig, resolve_deepspeed_config
    from minigptv2.engine.trainer import Trainer
    from minigptv2.engine.zero import assign, shape_of, zero_backend
    from minigptv2.model.bases import fill_weights, open_bases
    from minigptv2.model.build import build_model
    from minigptv2.model.export import tokenizer_of
    from minigptv2.model.weights import named_canonical
    from tests.engine.numerics import packs_of_step

    torch.set_num_threads(1)
    config = ModelConfig(**{**model, "lora": LoraConfig(**model["lora"])})
    device = distributed.choose_device()
    distributed.start_process_group(device, 10)
    file = Path(folder) / f"ds-{distributed.rank()}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage, "overlap_comm": False}}))
    train = TrainConfig(
        deepspeed=str(file), steps=2, global_batch_size=2, micro_batch_size=1, learning_rate=1e-2, warmup_steps=0
    )
    resolved = resolve_deepspeed_config(train, distributed.world_size())
    built = build_model(config, tokenizer_of(config).vocab_size, zero_backend(resolved).construction())
    fill_weights(built, open_bases(config), None, assign, seed=0, shape_of=shape_of)
    trainer = Trainer(built, named_canonical(built), train, resolved, device=device, seed=0)
    built.restore_float32_buffers()
    for step in range(2):
        trainer.train_step([packs_of_step(step)[distributed.rank()]])
    trainer.engine.save_checkpoint(folder)
    return {name: float(value.double().sum()) for name, value in trainer.trained_weights().items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> ModelConfig:
    llama = write_stock_llama(tmp_path_factory.mktemp("bases") / "llama", tokenizer)
    return ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        language_weights=str(llama),
        lora=LoraConfig(r=4, alpha=8, dropout=0.0),
        trainable=["projector", "lora"],
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_of_deepspeed_becomes_an_export(stage: int, config: ModelConfig, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    checksums = run_ranks(
        "tests.convert.test_deepspeed:train_and_save",
        2,
        tmp_path,
        model=asdict(config),
        stage=stage,
        folder=str(folder),
    )[0]
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    ours = consolidated(folder / "global_step2")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    info, report = from_deepspeed(folder, tmp_path / "export", config)
    tensors = {name: tensor.read() for name, tensor in info.tensors.items()}
    assert {name: float(tensors[name].double().sum()) for name in checksums} == checksums
    assert all(value.numel() for value in tensors.values())
    assert not any(name.startswith("language_model") and "lora" not in name for name in tensors)  # lies in its base
    assert info.lineage[-1].steps == 2
    dropped = report.dropped[str(folder / "global_step2")]
    assert sum("frozen, and equal in" in why for why in dropped.values()) == len(
        read_safetensors(Path(str(config.language_weights)).glob("*.safetensors"))
    )
    model, _, _ = load_export(tmp_path / "export")
    for name, parameter in model.named_parameters():
        assert parameter.numel(), name
    if stage == 3:
        refusals(folder, config, tmp_path)


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def refusals(folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    """A folder of another format or model, or one that is not safe to read, is refused with one message."""
    out = tmp_path / "refused"
    other = ModelConfig(**{**config.__dict__, "lora": LoraConfig(r=8, alpha=8)})
    with pytest.raises(CheckpointError, match=r"expected shape \(8, 48\)"):
        from_deepspeed(folder, out, other)
    base = ModelConfig(**{**config.__dict__, "language_weights": str(other_base(config, tmp_path))})
    with pytest.raises(CheckpointError, match="frozen .* differs from"):
        from_deepspeed(folder, out, base)
    with pytest.raises(CheckpointError, match="no file 'latest'"):
        from_deepspeed(tmp_path, out, config)
    part = sorted((folder / "global_step2").glob("*_optim_states.pt"))[1]
    good = part.read_bytes()
    part.write_bytes(good[:-2000])
    with pytest.raises(CheckpointError, match="not a valid PyTorch file"):
        from_deepspeed(folder, out, config)
    torch.save({"optimizer_state_dict": Trap(tmp_path / "sprung")}, part)
    with pytest.raises(CheckpointError, match="contains a Python object"):
        from_deepspeed(folder, out, config)
    part.unlink()
    with pytest.raises(CheckpointError, match="its shards cannot be joined"):
        from_deepspeed(folder, out, config)
    part.write_bytes(good)
    assert not out.exists() and not (tmp_path / "sprung").exists()


def other_base(config: ModelConfig, tmp_path: Path) -> Path:
    from minigptv2.tokenizer import load_tokenizer

    return write_stock_llama(tmp_path / "other", load_tokenizer(str(config.language_weights)), seed=5)
