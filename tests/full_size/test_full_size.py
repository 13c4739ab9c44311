"""Tests the program that runs the life cycle of a full-size model: its files, its limits, and a whole tiny run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from minigptv2.cli import main
from minigptv2.model.export import load_export
from tests.full_size import inputs, weights
from tests.full_size.__main__ import main as full_size
from tests.full_size.commands import Commands, PhaseError
from tests.full_size.phases import PHASES
from tests.full_size.sizes import FULL, TINY, with_layers
from tests.full_size.watch import MemoryWatch, measure

GIB = 1 << 30


def test_the_published_formats_convert_without_a_missing_key(tmp_path: Path) -> None:
    files = {"--vision": "eva_vit_g.pth", "--language-model": "llama", "--checkpoint": "checkpoint.pth"}
    weights.write_vision(tmp_path / files["--vision"], TINY)
    weights.write_llama(tmp_path / files["--language-model"], TINY)
    weights.write_checkpoint(tmp_path / files["--checkpoint"], TINY)
    inputs.write_tokenizer(tmp_path / "llama", TINY.pieces)
    words = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    output = tmp_path / "model"
    assert main(["convert", "from-published", *words, *TINY.conversion_options, "--output", str(output)]) == 0
    model, _, info = load_export(output)
    assert next(model.parameters()).dtype == torch.float16
    assert info.sizes.language_model == TINY.language and info.sizes.vision_encoder == TINY.vision


def test_the_full_size_is_the_published_one() -> None:
    """6,738,415,616 parameters of LLaMA-2-7B (its paper), and no option for the conversion."""
    shapes = weights.llama_shapes(FULL)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 6_738_415_616
    assert not FULL.conversion_options and with_layers(2).conversion_options


def test_shards_are_written_without_the_whole_file_in_memory(tmp_path: Path) -> None:
    weights.write_llama(tmp_path, TINY)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == weights.SHARDS
    found = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert found == weights.llama_shapes(TINY)


def test_memory_of_a_child_is_counted_and_a_limit_is_noticed(tmp_path: Path) -> None:
    import subprocess

    code = "import time; held = bytearray(b'x') * (200 << 20); print('ready', flush=True); time.sleep(60)"
    before = measure(tmp_path).held
    with MemoryWatch(tmp_path, before + (100 << 20), 0.05) as watch:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            assert measure(tmp_path).held - before > 190 << 20
            time.sleep(0.2)
        finally:
            child.kill()
            child.communicate()
    assert watch.exceeded and watch.peak.machine > watch.peak.held


def test_a_command_that_fails_or_takes_too_long_fails_its_phase(tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match="exit code 2 of minigptv2 nonsense"):
        Commands(tmp_path / "logs", tmp_path / "cache", 60.0).run("nonsense")
    with pytest.raises(PhaseError, match="time limit"):
        Commands(tmp_path / "logs", tmp_path / "cache", 0.0).run("--help")


@pytest.mark.soak
@pytest.mark.parametrize("size", [["--tiny"], ["--layers", "2"]], ids=["tiny", "two layers of full width"])
def test_the_whole_life_cycle_passes(tmp_path: Path, size: list[str]) -> None:
    """Half an hour for two layers of full width, which need 10 GiB of memory and 8 GB of disk."""
    assert full_size(["--output", str(tmp_path), *size, "--until", "shards"]) == 0
    assert full_size(["--output", str(tmp_path), *size]) == 0
    assert {file.stem for file in (tmp_path / "phases").iterdir()} == set(PHASES)
