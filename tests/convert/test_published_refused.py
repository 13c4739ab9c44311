"""Tests that published files which do not match or are damaged are refused, and that nothing is written."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigptv2.cli import main
from tests.conftest import REFERENCE
from tests.convert.published import changed_checkpoint, words

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the published code's outputs beside it")


def drop_lora(state: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state if "lora" in key]:
        del state[key]


def drop_module(state: dict[str, torch.Tensor]) -> None:
    for key in [key for key in state if "v_proj.lora" in key]:
        del state[key]


def drop_one(state: dict[str, torch.Tensor]) -> None:
    del state["llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]


def test_files_that_do_not_match_are_refused_and_nothing_is_written(tmp_path: Path, capsys: Any) -> None:
    made = tmp_path / "made"
    made.mkdir()

    def file(name: str, change: Any) -> Path:
        return changed_checkpoint(made / name, change)

    wider = made / "llama"
    shutil.copytree(REFERENCE / "llama", wider, copy_function=shutil.copyfile)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    tensors = load_file(str(wider / "model.safetensors"))
    save_file(
        {k: torch.zeros([64 if s == 32 else s for s in v.shape]) for k, v in tensors.items()},
        str(wider / "model.safetensors"),
    )
    short = made / "short.pth"
    short.write_bytes((REFERENCE / "minigptv2_checkpoint.pth").read_bytes()[:30_000])
    empty = made / "empty.pth"
    empty.touch()
    cut = made / "cut.pth"
    cut.write_bytes((REFERENCE / "eva_vit_g.pth").read_bytes()[:-5000])
    trap = made / "trap.pth"
    torch.save({"model": Trap(made / "sprung")}, trap)

    refused: list[tuple[dict[str, Any], str]] = [
        ({"language_model": wider}, r"expected shape \(8, 64\), got \(8, 32\)"),
        ({"checkpoint": file("none.pth", drop_lora)}, "has no LoRA; without it"),
        (
            {"checkpoint": file("one.pth", drop_one)},
            "no tensor for language_model.model.layers.1.self_attn.v_proj.lora_B",
        ),
        ({"checkpoint": file("more.pth", lambda s: s.update(extra=torch.zeros(1)))}, "unexpected key extra"),
        ({"checkpoint": file("half.pth", drop_module)}, "incomplete LoRA: found q_proj, missing v_proj"),
        ({"checkpoint": file("number.pth", lambda s: s.update(epoch=3))}, "'epoch' must be a tensor, got int"),
        ({"checkpoint": empty}, "is an empty file; expected a file of torch.save"),
        ({"checkpoint": short}, "not a valid PyTorch file"),
        ({"vision": cut}, "not a valid PyTorch file"),
        ({"checkpoint": trap}, "contains a Python object"),
        ({"vision": tmp_path / "absent.pth"}, "absent.pth does not exist"),
        ({"vision_heads": None}, "--vision-heads is required"),
        ({"vision_heads": "3"}, "must divide the width 88"),
        ({"image_size": "100"}, "multiple of 14"),
        ({"language_model": tmp_path / "absent"}, "neither a known name"),
    ]
    for changed, message in refused:
        output = tmp_path / "out" / "model"
        assert main(words(output, **changed)) in (2, 4), changed
        said = capsys.readouterr().err
        assert re.search(message, said), (message, said)
        assert said.count("Error:") == 1
        assert not output.exists() and not list(output.parent.glob(".*")) if output.parent.exists() else True
    assert not (made / "sprung").exists()


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)
