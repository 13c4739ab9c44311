"""Tests that `peft` and `transformers` give the same results on converted exports as this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minigptv2.cli import main
from minigptv2.errors import CheckpointError
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import load_export
from minigptv2.tokenizer import Tokenizer
from tests.stand_ins import lora_on, random_export, write_stock_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_stock_llama(tmp_path_factory.mktemp("bases") / "llama", tokenizer)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, llama: Path, tokenizer: Tokenizer) -> Path:
    config = lora_on(llama)
    return random_export(tmp_path_factory.mktemp("exports") / "export", config, tokenizer)


def text_logits(model: Any, tokenizer: Tokenizer) -> torch.Tensor:
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("the red circle is left of a blue bar")]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_stock_peft_on_stock_llama_gives_the_same_answers(
    export: Path, llama: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from peft import PeftModel

    assert main(["convert", "to-peft", str(export), "--output", str(tmp_path / "adapter")]) == 0
    stock = AutoModelForCausalLM.from_pretrained(str(llama), attn_implementation="sdpa")
    plain = text_logits(stock, tokenizer).clone()
    theirs = text_logits(PeftModel.from_pretrained(stock, str(tmp_path / "adapter")), tokenizer)
    model, _, info = load_export(export)
    with model.generating():
        ours = text_logits(model.language_model, tokenizer)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 0.01  # the adapter does something
    projector = load_file(str(tmp_path / "adapter" / "projector.safetensors"))
    assert torch.equal(projector["linear.weight"], model.projector.linear.weight)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        llama
    )


def test_merged_equals_unmerged_in_ours_and_in_stock_transformers(
    export: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert main(["convert", "merge", str(export), "--output", str(tmp_path / "merged")]) == 0
    ours, _, _ = load_export(export)
    merged, _, info = load_export(tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "merged" / "language_model"), attn_implementation="sdpa"
    )
    with ours.generating(), merged.generating():
        before = text_logits(ours.language_model, tokenizer)
        torch.testing.assert_close(text_logits(merged.language_model, tokenizer), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(text_logits(stock, tokenizer), before, atol=1e-5, rtol=0)
    assert info.model.lora.r == 0 and not any("lora" in name for name in info.tensors)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(ours.encode_images(pixels), merged.encode_images(pixels))


def test_merged_in_another_type_and_in_shards(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minigptv2.convert.llama as convert_llama

    monkeypatch.setattr(convert_llama.write_llama, "__defaults__", (60_000,))
    words = ["convert", "merge", str(export), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert main(words) == 0
    inner = tmp_path / "half" / "language_model"
    assert len(list(inner.glob("model-*-of-*.safetensors"))) > 2
    stock = AutoModelForCausalLM.from_pretrained(str(inner))
    assert stock.dtype == torch.bfloat16
    whole, _, _ = load_export(export)
    merged, _, _ = load_export(tmp_path / "half")
    assert sum(p.numel() for p in merged.parameters()) == sum(
        p.numel() for name, p in whole.named_parameters() if "lora" not in name
    )


def test_a_model_trained_whole_merges_too_but_is_no_adapter(tmp_path: Path, tokenizer: Tokenizer, capsys: Any) -> None:
    config = ModelConfig(
        vision_encoder="tiny_vit",
        language_model="tiny_llama",
        lora=LoraConfig(r=0),
        trainable=["vision_encoder", "projector", "language_model"],
    )
    whole = random_export(tmp_path / "whole", config, tokenizer)
    assert main(["convert", "merge", str(whole), "--output", str(tmp_path / "merged")]) == 0
    ours, _, _ = load_export(whole)
    stock = AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "merged" / "language_model"), attn_implementation="sdpa"
    )
    with ours.generating():
        torch.testing.assert_close(
            text_logits(stock, tokenizer), text_logits(ours.language_model, tokenizer), atol=1e-5, rtol=0
        )
    for direction, name in (("to-peft", "a"), ("to-published", "b.pth")):
        assert main(["convert", direction, str(whole), "--output", str(tmp_path / name)]) == 4
        assert not (tmp_path / name).exists()
    said = capsys.readouterr().err
    assert "has no LoRA (r=0)" in said and "published files contain projector and LoRA only" in said


def test_another_base_is_refused_with_both_hashes(export: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = write_stock_llama(tmp_path / "other", tokenizer, seed=1)
    with pytest.raises(
        CheckpointError, match=r"another language_model: expected sha256 [0-9a-f]{16}, .* has [0-9a-f]{16}"
    ):
        load_export(export, language_weights=str(other))
    for direction in ("merge", "to-peft"):
        words = ["convert", direction, str(export), "--output", str(tmp_path / "m"), "--language-weights", str(other)]
        assert main(words) == 4 and not (tmp_path / "m").exists()


def test_moved_base_weights_are_found_by_option(export: Path, llama: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(llama, moved)
    model, _, _ = load_export(export, language_weights=str(moved))
    before, _, _ = load_export(export)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_embeddings_shared_with_the_head_are_read_as_two(llama: Path, tmp_path: Path) -> None:
    from minigptv2.model.bases import open_llama

    tied = tmp_path / "tied"
    shutil.copytree(llama, tied)
    tensors = load_file(str(tied / "model.safetensors"))
    del tensors["lm_head.weight"]
    save_file(tensors, str(tied / "model.safetensors"))
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    opened = open_llama(tied)
    assert torch.equal(opened["language_model.lm_head.weight"].read(), tensors["model.embed_tokens.weight"])


def test_a_folder_of_bin_files_converts(export: Path, llama: Path, tmp_path: Path) -> None:
    from minigptv2.convert.inputs import KeyReport
    from minigptv2.convert.llama import copy_llama, open_llama_source

    old = tmp_path / "old"
    old.mkdir()
    shutil.copyfile(llama / "config.json", old / "config.json")
    tensors = load_file(str(llama / "model.safetensors"))
    names = sorted(tensors)
    for number, half in enumerate((names[:7], names[7:]), 1):
        state = {name: tensors[name] for name in half} | {
            f"model.layers.{number - 1}.self_attn.rotary_emb.inv_freq": torch.ones(2)
        }
        torch.save(state, old / f"pytorch_model-{number:05d}-of-00002.bin")
    copy_llama(open_llama_source(old, KeyReport()), tmp_path / "new")
    written = load_file(str(tmp_path / "new" / "model.safetensors"))
    assert written.keys() == tensors.keys() and all(torch.equal(written[n], tensors[n]) for n in names)
