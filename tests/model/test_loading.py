"""Tests the dtype that a model folder is loaded in, and the error if it does not fit into memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2 import foreign_files
from minigptv2.cli import main
from minigptv2.cluster.rendezvous import free_port
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.model import base_hashes, memory_check
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import load_export
from minigptv2.model.weights import FILE_DTYPES, TensorInFile
from minigptv2.predict.predictor import load_predictor
from minigptv2.tokenizer import Tokenizer
from tests.stand_ins import lora_on, random_export, write_stock_llama

DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    """An export on a base folder of each dtype. Its own weights are float32."""
    root = tmp_path_factory.mktemp("exports")
    made = {}
    for dtype in DTYPES:
        llama = write_stock_llama(root / f"llama_{dtype}", tokenizer, dtype=getattr(torch, dtype))
        config = lora_on(llama)
        made[dtype] = random_export(root / dtype, config, tokenizer)
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_the_language_model_is_the_default(exports: dict[str, Path], dtype: str) -> None:
    model, _, _ = load_export(exports[dtype])
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}


def test_an_export_without_base_folder_has_the_dtype_of_its_own_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = ModelConfig(vision_encoder="tiny_vit", language_model="tiny_llama")
    model, _, _ = load_export(random_export(tmp_path / "export", config, tokenizer))
    assert next(model.parameters()).dtype == torch.float32


def test_a_given_dtype_replaces_the_default(exports: dict[str, Path]) -> None:
    model, _, _ = load_export(exports["float16"], dtype=torch.float32)
    assert next(model.parameters()).dtype == torch.float32


def _commands(export: Path, folder: Path) -> dict[str, list[str]]:
    """Every command that loads a model, with files that are valid."""
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    question = {"question": "[vqa] color?"}
    for name, turn in (("ask", question), ("score", question | {"answer": "red"})):
        (folder / f"{name}.jsonl").write_text(json.dumps({"image": "red.png", "turns": [turn]}) + "\n")
    model = ["--model", str(export)]
    output = ["--output", str(folder / "out.jsonl")]
    return {
        "ask": ["ask", *model, str(folder / "red.png"), "[vqa] color?", "--max-new-tokens", "2"],
        "chat": ["chat", *model],
        "predict": ["predict", *model, "--input", str(folder / "ask.jsonl"), *output, "--max-new-tokens", "2"],
        "score": ["score", *model, "--input", str(folder / "score.jsonl"), *output],
        "serve": ["serve", *model, "--port", str(free_port())],
    }


def _evaluate(export: Path, shards: Path, output: Path) -> list[str]:
    where = ["--shards", str(shards), "--corpus", "toy_caption", "--output", str(output)]
    return ["evaluate", "--model", str(export), *where, "--limit", "2"]


@pytest.mark.parametrize("command", ["ask", "chat", "predict", "score", "serve", "evaluate"])
def test_every_command_names_needed_and_available_memory_before_it_loads(
    exports: dict[str, Path],
    world: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda: 1 << 10)
    monkeypatch.setattr("minigptv2.model.export.HashedBase", lambda base: pytest.fail("the bases were read"))
    words = _commands(exports["float32"], tmp_path) | {
        "evaluate": _evaluate(exports["float32"], world.val, tmp_path / "evaluation")
    }
    assert main([*words[command], "--device", "cpu"]) == ConfigError.exit_code
    message = capsys.readouterr().err
    assert re.search(r"need [\d.]+ GiB, but 0\.0 GiB are available", message)
    assert "--dtype bfloat16" in message


@pytest.mark.parametrize("command", ["ask", "predict", "score", "evaluate"])
def test_every_command_runs_in_half_precision_on_a_cpu(
    exports: dict[str, Path], world: Any, tmp_path: Path, command: str
) -> None:
    words = _commands(exports["float16"], tmp_path) | {
        "evaluate": _evaluate(exports["float16"], world.val, tmp_path / "evaluation")
    }
    assert main([*words[command], "--device", "cpu"]) == 0


def test_all_ranks_of_a_machine_count(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = sum(parameter.numel() for parameter in load_export(exports["bfloat16"])[0].parameters())
    monkeypatch.setattr(memory_check, "available_memory", lambda: 3 * numbers)
    load_predictor(str(exports["bfloat16"]), device="cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in bfloat16 on 2 ranks need .* To fix this, start fewer ranks, or close"):
        load_predictor(str(exports["bfloat16"]), device="cpu")


def test_unknown_memory_refuses_nothing(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda: None)
    load_export(exports["bfloat16"])


@pytest.mark.parametrize("kept", [False, True], ids=["first start", "second start"])
def test_each_byte_of_the_bases_is_read_once(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(base_hashes, "SETTLED_S", -1.0)
    if kept:
        load_export(exports["bfloat16"])
    names: list[str] = []
    read = TensorInFile.__call__

    def counted(tensor: TensorInFile) -> torch.Tensor:
        names.append(tensor.name)
        return read(tensor)

    monkeypatch.setattr(TensorInFile, "__call__", counted)
    load_export(exports["bfloat16"])
    of_bases = [name for name in names if name.startswith(("model.", "lm_head."))]
    assert of_bases and len(of_bases) == len(set(of_bases))
    assert len(list((tmp_path / "minigptv2" / "hashes").iterdir())) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_bases_are_refused_on_the_first_and_on_the_second_start(
    exports: dict[str, Path], tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(base_hashes, "SETTLED_S", -1.0)
    other = write_stock_llama(tmp_path / "other", tokenizer, seed=1, dtype=getattr(torch, dtype))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="trained on another language_model: expected sha256"):
            load_export(exports[dtype], language_weights=str(other))


def test_every_number_type_that_is_read_has_a_dtype() -> None:
    assert set(FILE_DTYPES) == set(foreign_files._NUMBER_TYPES)
