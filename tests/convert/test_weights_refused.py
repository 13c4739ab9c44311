"""Tests that weights which are not finite, and files that are something else than their name says, are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigptv2.cli import main
from minigptv2.errors import CheckpointError
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import WEIGHTS_FILE, load_info, open_weights
from minigptv2.model.weights import check_finite
from minigptv2.tokenizer import Tokenizer
from tests.conftest import REFERENCE
from tests.convert.published import changed_checkpoint, words
from tests.stand_ins import random_export, write_stock_llama

needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the published code's outputs beside it")
NAN, INF = math.nan, math.inf
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 132\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
ADVICE = ("weights_only", "torch.load", "Re-running")
"""Words of the library's advice to read a file without protection."""


def test_every_kind_of_number_is_counted() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = torch.full((7, 3), torch.finfo(dtype).max, dtype=dtype)  # finite, but its sum overflows
        check_finite("a.weight", tensor, "file")
        tensor[2, 1], tensor[3, 0] = NAN, -INF
        with pytest.raises(CheckpointError, match=r"^file: 2 of the 21 numbers of a.weight are not finite"):
            check_finite("a.weight", tensor, "file")
    check_finite("8 bits", torch.zeros(3).to(torch.float8_e4m3fn), "file")
    with pytest.raises(CheckpointError, match="1 of the 2 numbers"):
        check_finite("8 bits", torch.tensor([1.0, NAN]).to(torch.float8_e5m2), "file")
    check_finite("no numbers", torch.zeros(0), "file")
    check_finite("whole numbers", torch.tensor([1, 2]), "file")
    with pytest.raises(CheckpointError, match="2 of the 2 numbers"):
        check_finite("opposite infinities", torch.tensor([INF, -INF]), "file")


def refused(output: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What the conversion says when it refuses the files; nothing is written."""
    assert main(words(output, **changed)) == 4
    assert not output.exists() and not list(output.parent.glob(".*"))
    said = capsys.readouterr().err
    assert said.count("Error:") == 1 and not any(word in said for word in ADVICE), said
    return said


@needs_reference
@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "key",
    ["llama_proj.weight", "llama_proj.bias", "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_A"],
)
def test_a_trained_tensor_that_is_not_finite(
    key: str, number: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        name = next(name for name in state if name.startswith(key))
        state[name].view(-1)[3:5] = number

    file = changed_checkpoint(tmp_path / "spoiled.pth", spoil)
    said = refused(tmp_path / "out" / "model", {"checkpoint": file}, capsys)
    assert f"{file}: 2 of the " in said and key in said


@needs_reference
@pytest.mark.parametrize(
    "key", ["patch_embed.proj.weight", "pos_embed", "blocks.0.attn.q_bias", "blocks.1.mlp.fc2.bias"]
)
def test_a_vision_tensor_that_is_not_finite(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(REFERENCE / "eva_vit_g.pth", weights_only=True)
    state[key].view(-1)[0] = NAN
    torch.save(state, tmp_path / "vit.pth")
    said = refused(tmp_path / "out" / "model", {"vision": tmp_path / "vit.pth"}, capsys)
    assert f"vit.pth: 1 of the {state[key].numel()} numbers of {key} are not finite" in said


@needs_reference
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_language_model_that_is_not_finite(
    key: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(REFERENCE / "llama", folder, copy_function=shutil.copyfile)
    state = load_file(str(folder / "model.safetensors"))
    state[key].view(-1)[-1] = INF
    (folder / "model.safetensors").unlink()
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, str(folder / "model.safetensors"))
    said = refused(tmp_path / "out" / "model", {"language_model": folder}, capsys)
    assert f"{folder}: 1 of the {state[key].numel()} numbers of" in said and key in said


@needs_reference
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTER, "a Git LFS pointer"),
        (b"\xef\xbb\xbf" + POINTER.replace(b"\n", b"\r\n"), "a Git LFS pointer"),
        (PAGE, "a web page"),
        (b"<html>\n<head></head></html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b"Entry not found", "a text file that begins with 'Entry not found'"),
        (b'{"error": "Repository not found"}', "a text file that begins with"),
        (b"", "an empty file"),
    ],
)
def test_files_of_another_kind_are_named(
    content: bytes, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    folders = {}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        folders[name] = tmp_path / name.replace(".", "_")
        shutil.copytree(REFERENCE / "llama", folders[name], copy_function=shutil.copyfile)
        (folders[name] / name).write_bytes(content)
        if name == "tokenizer.json":
            (folders[name] / "tokenizer.model").unlink(missing_ok=True)
    binary: list[dict[str, Any]] = [
        {"checkpoint": file},
        {"vision": file},
        {"language_model": folders["model.safetensors"]},
    ]
    text: list[dict[str, Any]] = [
        {"language_model": folders["tokenizer.json"]},
        {"language_model": folders["config.json"]},
    ]
    for changed in binary + (text if "text file" not in what else []):
        said = refused(tmp_path / "out" / "model", changed, capsys)
        assert what in said and str(next(iter(changed.values()))) in said, (changed, said)


@needs_reference
@pytest.mark.parametrize(
    "content", [b"\x00" * 600, b"\x80\x02garbage", b"PK\x03\x04" + b"\x01" * 400, bytes(range(256))]
)
def test_a_damaged_file_never_ends_with_advice_to_turn_protection_off(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    assert "not a valid PyTorch file" in refused(tmp_path / "out" / "m", {"checkpoint": tmp_path / "file.pth"}, capsys)


@needs_reference
def test_a_tokenizer_with_far_fewer_pieces_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(REFERENCE / "llama", folder, copy_function=shutil.copyfile)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    document = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    said = refused(tmp_path / "out" / "model", {"language_model": folder}, capsys)
    assert "only 3 pieces for the 32000 rows" in said


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    config = ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        language_weights=str(write_stock_llama(folder / "llama", tokenizer)),
        lora=LoraConfig(r=4, alpha=8, dropout=0.0),
        trainable=["projector", "lora"],
    )
    return random_export(folder / "export", config, tokenizer)


def copied(export: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None] | None = None) -> Path:
    """A copy of the export, with changed tensors and the hash that belongs to them."""
    from minigptv2.files import sha256_of

    shutil.copytree(export, folder)
    if change is not None:
        state = load_file(str(folder / WEIGHTS_FILE))
        change(state)
        save_file(state, str(folder / WEIGHTS_FILE))
        config = json.loads((folder / "config.json").read_text())
        config["weights_sha256"] = sha256_of(folder / WEIGHTS_FILE)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("command", ["merge", "to-peft", "to-published"])
def test_an_export_that_is_not_finite_is_not_converted(
    command: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = copied(export, tmp_path / "export", lambda state: state["projector.linear.bias"].fill_(INF))
    assert main(["convert", command, str(spoiled), "--output", str(tmp_path / "out.pth")]) == 4
    said = capsys.readouterr().err
    assert "projector.linear.bias are not finite" in said and not (tmp_path / "out.pth").exists()


def test_a_merge_that_overflows_its_dtype_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "language_model.model.layers.0.self_attn.q_proj.lora_B.weight"
    large = copied(export, tmp_path / "export", lambda state: state[name].fill_(1e7))
    assert main(["convert", "merge", str(large), "--output", str(tmp_path / "half"), "--dtype", "float16"]) == 4
    said = capsys.readouterr().err
    assert "merged in torch.float16" in said and "q_proj.weight are not finite" in said
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (WEIGHTS_FILE, POINTER, "a Git LFS pointer"),
        ("config.json", POINTER, "a Git LFS pointer"),
        ("tokenizer.json", PAGE, "a web page"),
        ("config.json", b"", "an empty file"),
    ],
)
def test_files_of_an_export_of_another_kind_are_named(
    name: str, content: bytes, what: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(export, tmp_path / "export")
    (folder / name).write_bytes(content)
    assert main(["convert", "merge", str(folder), "--output", str(tmp_path / "out")]) == 4
    assert what in (said := capsys.readouterr().err) and name in said


def test_the_tokenizer_of_an_export_may_not_be_replaced(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(export, tmp_path / "export")
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    (a, first), (b, second) = list(vocabulary.items())[300:302]
    vocabulary |= {a: second, b: first}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    open_weights(load_info(folder))
    assert main(["convert", "merge", str(folder), "--output", str(tmp_path / "out")]) == 4
    assert "the export was made with another tokenizer" in capsys.readouterr().err
