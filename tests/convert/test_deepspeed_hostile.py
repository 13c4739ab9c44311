"""Tests that foreign DeepSpeed folders run no code, and that only files of the named folder are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigptv2.convert.deepspeed import from_deepspeed
from minigptv2.errors import CheckpointError
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.tokenizer import Tokenizer
from tests.stand_ins import write_deepspeed, write_stock_llama

OPTIMIZER, MODEL = "zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"


class Trap:
    """An object whose unpickling creates the file `sprung` in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch sprung",)


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


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, config: ModelConfig, tokenizer: Tokenizer) -> Path:
    return write_deepspeed(tmp_path_factory.mktemp("theirs") / "run", config, tokenizer)


@pytest.fixture
def run(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good checkpoint, beside an empty working folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Path(shutil.copytree(good, tmp_path / "run"))


def refused(run: Path, config: ModelConfig, tag: str | None = None) -> str:
    """The message of the refusal. Nothing was run or written."""
    with pytest.raises(CheckpointError) as error:
        from_deepspeed(run, run.parent / "out", config, tag=tag)
    assert not list(Path().iterdir()) and not (run.parent / "out").exists()
    return str(error.value)


def test_the_good_checkpoint_is_converted(run: Path, config: ModelConfig) -> None:
    info, _ = from_deepspeed(run, run.parent / "out", config)
    assert info.lineage[-1].steps == 2


@pytest.mark.parametrize("how", ["latest", "--tag"])
@pytest.mark.parametrize(
    "tag",
    [
        *("global_step[2]", "global_step?", "*", "[a-z]lobal_step2", "{global_step2}", "!global"),
        *("../run/global_step2", "..", ".", "...", "/global_step2", "a/b", "a\\b", "./global_step2"),
        *("global_step2\nx", "\x1b[31mred", "a\0b", "global\u202estep", "$HOME", "~", "", " ", "x" * 300, "-rf"),
    ],
)
def test_a_tag_that_is_no_plain_name_is_refused(tag: str, how: str, run: Path, config: ModelConfig) -> None:
    """DeepSpeed passes a tag to `glob`: `global_step[1]` was scanned, and `global_step1` was loaded."""
    for name in (tag, "global_step2"):
        place = run / name
        if "\0" not in name and len(name) < 256 and place.parent == run and not place.exists():
            shutil.copytree(run / "global_step2", place)
    torch.save({"optimizer_state_dict": Trap()}, run / "global_step2" / OPTIMIZER)
    (run / "latest").write_text(tag)
    if how == "latest" or tag:  # an empty --tag is that of `latest`
        message = refused(run, config, None if how == "latest" else tag)
        assert "tag" in message or "no folder" in message or "bytes" in message
        assert "\x1b" not in message and "\n" not in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"global_step2" + b" " * 1000, b"\xc3"])
def test_a_latest_that_is_no_name(content: bytes, run: Path, config: ModelConfig) -> None:
    (run / "latest").write_bytes(content)
    refused(run, config)


def linked_outside(file: Path, outside: Path) -> None:
    file.rename(outside)
    file.symlink_to(outside)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("name", ["latest", f"global_step2/{MODEL}", f"global_step2/{OPTIMIZER}"])
def test_a_file_that_is_not_regular_is_never_opened(name: str, run: Path, config: ModelConfig) -> None:
    for make in SPECIAL.values():
        (run / name).unlink() if (run / name).is_file() else None
        make(run / name)
        message = refused(run, config)
        assert "expected a regular file" in message or "link out of its folder" in message
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


@pytest.mark.parametrize("name", ["latest", f"global_step2/{MODEL}", f"global_step2/{OPTIMIZER}"])
def test_a_link_out_of_the_folder_is_refused(name: str, run: Path, config: ModelConfig) -> None:
    linked_outside(run / name, run.parent / "elsewhere")
    assert "is a link out of its folder" in refused(run, config)


def test_a_link_instead_of_the_folder_of_the_tag_is_refused(run: Path, config: ModelConfig) -> None:
    linked_outside(run / "global_step2", run.parent / "elsewhere")
    assert "links do not count" in refused(run, config)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("classes", [Trap(), print, ModelConfig(), Path(), 1 + 2j, range(3), b"x".join])
def test_an_object_is_refused_by_its_name(classes: Any, name: str, run: Path, config: ModelConfig) -> None:
    torch.save({"optimizer_state_dict": classes, "module": classes}, run / "global_step2" / name)
    assert "contains a Python object" in refused(run, config)


@pytest.mark.parametrize("kind", ["model", "optim"])
@pytest.mark.parametrize(
    "extra", ["zero_pp_rank_1_mp_rank_00", "zero_pp_rank_0_mp_rank_01", "bf16_zero_pp_rank_0_mp_rank_00"]
)
def test_files_of_other_ranks_are_named(extra: str, kind: str, run: Path, config: ModelConfig) -> None:
    """They are read by no rule of names that differs from the check: a file is of a rank, or it is left alone."""
    folder = run / "global_step2"
    torch.save({"optimizer_state_dict": Trap(), "module": Trap()}, folder / f"{extra}_{kind}_states.pt")
    if kind == "optim" or "rank_01" in extra:
        refused(run, config)
    else:
        from_deepspeed(run, run.parent / "out", config)  # a file that ZeRO 2 does not read
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"zero_stage": 7},
        {"zero_stage": "2"},
        {"partition_count": 2},
        {"partition_count": "many"},
        {"single_partition_of_fp32_groups": []},
        {"single_partition_of_fp32_groups": [torch.zeros(3)]},
        {"single_partition_of_fp32_groups": "text"},
        {"single_partition_of_fp32_groups": [[1.0, 2.0]]},
        {"param_alignment_paddings": [[1]]},
    ],
)
def test_shards_that_do_not_fit_are_one_error(change: dict[str, Any], run: Path, config: ModelConfig) -> None:
    file = run / "global_step2" / OPTIMIZER
    document = torch.load(file, weights_only=True)
    document["optimizer_state_dict"] |= change
    torch.save(document, file)
    assert str(run / "global_step2") in refused(run, config)


@pytest.mark.parametrize(
    "change",
    [
        {"param_shapes": [{"a": torch.Size([1 << 40])}]},
        {"param_shapes": [{"a": (-1, 5)}]},
        {"param_shapes": [{"a": ((3,),)}]},
        {"param_shapes": {"a": 3}},
        {"frozen_param_fragments": 3},
        {"module": [1]},
        {"buffer_names": 5},
        {"shared_params": []},
    ],
)
def test_a_model_that_does_not_fit_is_one_error(change: dict[str, Any], run: Path, config: ModelConfig) -> None:
    file = run / "global_step2" / MODEL
    torch.save(torch.load(file, weights_only=True) | change, file)
    assert str(run / "global_step2") in refused(run, config)
