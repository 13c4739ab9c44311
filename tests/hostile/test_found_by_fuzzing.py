"""Tests the kinds of files that the fuzzers found to end in an exception of Python, each with other values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.config import load_config
from minigptv2.convert.zero_shards import consolidated
from minigptv2.errors import CheckpointError, ConfigError, DataError
from minigptv2.model.backbones import language_spec
from minigptv2.model.export import load_info
from minigptv2.run_config import RunConfig
from minigptv2.shards.arrays import map_array
from minigptv2.tokenizer import load_tokenizer
from tests.hostile.fuzz.models import ExportConfig, LlamaFolder, TokenizerJson, TokenizerModel, ZeroShards


@pytest.mark.parametrize("unknown", [{"a": 1}, [], ["<unk>"], 5, True])
def test_an_unknown_token_of_another_type_is_one_error(unknown: Any, tmp_path: Path) -> None:
    document = TokenizerJson(tmp_path).valid
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**document, "model": document["model"] | {"unk_token": unknown}})
    )
    with pytest.raises(CheckpointError, match="unk_token is not in the vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("parts", [5, True, "abc", {"type": "Fuse"}, 0.5])
@pytest.mark.parametrize("part", ["pre_tokenizer", "decoder"])
def test_parts_of_a_sequence_that_are_no_list_are_one_error(part: str, parts: Any, tmp_path: Path) -> None:
    key = {"pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
    document = TokenizerJson(tmp_path).valid | {part: {"type": "Sequence", key: parts}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"{key} of its {part} must be a list"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("at", range(20, 60, 5))
@pytest.mark.parametrize("bad", [b"\xda", b"\xfb\xff", b"\xed\xa0\x80"])
def test_a_sentencepiece_model_with_bad_text_is_used_or_one_error(at: int, bad: bytes, tmp_path: Path) -> None:
    reader = TokenizerModel(tmp_path)
    data = reader.unchanged()
    try:
        reader.read(data[:at] + bad + data[at + len(bad) :])
    except (CheckpointError, ConfigError) as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize("value", [0.0, False, 0, "", (), torch.zeros(0), torch.ones(3), [1]])
def test_a_state_of_the_optimizer_of_another_type_is_one_error(value: Any, tmp_path: Path) -> None:
    ZeroShards(tmp_path)
    torch.save({"optimizer_state_dict": value}, tmp_path / ZeroShards.names[1])
    with pytest.raises(CheckpointError):
        consolidated(tmp_path)


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(0), [torch.zeros(2)]])
def test_experts_of_another_type_are_one_error(value: Any, tmp_path: Path) -> None:
    shards = ZeroShards(tmp_path)
    torch.save(shards._documents[shards.names[0]] | {"autoep_layers": value}, tmp_path / shards.names[0])
    with pytest.raises(CheckpointError):
        consolidated(tmp_path)


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**310])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "hidden_size", "max_position_embeddings"])
def test_a_number_too_large_for_a_float_is_one_error(key: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LlamaFolder.valid | {key: number}))
    with pytest.raises(CheckpointError, match="not a LLaMA's config"):
        language_spec(str(tmp_path))


MANDATORY = {
    "stage": "a",
    "run_dir": "r",
    "data.recipe": "r",
    "train.steps": 1,
    "train.learning_rate": 1e-3,
    "train.global_batch_size": 1,
    "train.micro_batch_size": 1,
}
LONG = ["x" * 256, "a/" * 3000, "ü" * 300, "a" * 100_000, "a/" + "b" * 5000 + "/c"]


@pytest.mark.parametrize("path", LONG, ids=lambda path: f"{len(path)} characters")
@pytest.mark.parametrize("key", ["model.tokenizer", "data.shards", "data.recipe", "init_from", "run_dir"])
def test_a_path_too_long_for_a_file_system_is_one_error(key: str, path: str, tmp_path: Path) -> None:
    section, _, name = key.rpartition(".")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({section: {name: path}} if section else {name: path}))
    given = [f"{one}={value}" for one, value in MANDATORY.items() if one != key]
    with pytest.raises(ConfigError, match=rf"{key} is no path: it has"):
        load_config(RunConfig, file, given)


@pytest.mark.parametrize("path", LONG, ids=lambda path: f"{len(path)} characters")
def test_the_same_in_extends_and_in_an_export(path: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps({"extends": path}))
    with pytest.raises(ConfigError, match="extends is no path"):
        load_config(RunConfig, tmp_path / "run.yaml")
    document = ExportConfig.valid | {"model": ExportConfig.valid["model"] | {"language_weights": path}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="language_weights is no path"):
        load_info(tmp_path)


@pytest.mark.parametrize("length", [10_001, 20_000, 65_535])
def test_a_long_header_of_an_array_gives_no_advice_to_trust_it(length: int, tmp_path: Path) -> None:
    (tmp_path / "index.npy").write_bytes(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + b" " * length)
    with pytest.raises(DataError, match="cannot be read") as caught:
        map_array(tmp_path / "index.npy", "", 1)
    assert "\n" not in str(caught.value) and "trust" not in str(caught.value)
