"""Tests that hashes of base weights are kept, and never used for files that have changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigptv2.errors import CheckpointError
from minigptv2.model import base_hashes
from minigptv2.model.base_hashes import hash_bases
from minigptv2.model.bases import open_language_base
from minigptv2.model.weights import Tensors
from minigptv2.tokenizer import Tokenizer
from tests.stand_ins import write_stock_llama


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LLaMA folder whose hash is kept below `tmp_path`, however new its files are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(base_hashes, "SETTLED_S", -1.0)
    return write_stock_llama(tmp_path / "llama", tokenizer)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose bytes were read for a hash."""
    read: list[str] = []
    compute = base_hashes.hash_tensors

    def count(tensors: Tensors, source: str) -> str:
        read.append(source)
        return compute(tensors, source)

    monkeypatch.setattr(base_hashes, "hash_tensors", count)
    return read


def _hash(folder: Path) -> str:
    return hash_bases([open_language_base(folder)])["language_model"]


def _entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "minigptv2" / "hashes").iterdir())


def test_an_unchanged_folder_is_hashed_once(folder: Path, tmp_path: Path, computed: list[str]) -> None:
    assert _hash(folder) == _hash(folder) == base_hashes.hash_tensors(open_language_base(folder).tensors, "again")
    assert computed == [str(folder), "again"]
    assert len(_entries(tmp_path)) == 1


def _other_numbers(file: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in load_file(str(file)).items()}, str(file), {"format": "pt"})


def _keep_times(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def changed(file: Path) -> None:
        facts = file.stat()
        change(file)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return changed


def _one_byte_in_place(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))


def _replace(file: Path) -> None:
    copy = file.with_suffix(".copy")
    shutil.copy2(file, copy)
    _one_byte_in_place(copy)
    os.replace(copy, file)


@pytest.mark.parametrize(
    "change",
    [_other_numbers, _keep_times(_other_numbers), _keep_times(_one_byte_in_place), _keep_times(_replace)],
    ids=["new numbers", "same size and time", "one byte in place", "another file of the same time"],
)
def test_a_changed_file_is_hashed_again(folder: Path, computed: list[str], change: Callable[[Path], None]) -> None:
    before = _hash(folder)
    change(folder / "model.safetensors")
    assert _hash(folder) != before and len(computed) == 2


def test_a_config_that_ties_the_head_counts_as_a_change(folder: Path, computed: list[str]) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    del tensors["lm_head.weight"]
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    before = _hash(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert _hash(folder) != before and len(computed) == 2


def test_a_file_written_a_moment_ago_is_not_kept(
    folder: Path, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change could get the same times, where a file system counts whole seconds."""
    monkeypatch.setattr(base_hashes, "SETTLED_S", 3600.0)
    assert _hash(folder) == _hash(folder)
    assert len(computed) == 2 and not _entries(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"files": []}', "sha256"], ids=str)
def test_a_damaged_entry_is_not_used(folder: Path, tmp_path: Path, computed: list[str], damage: bytes | str) -> None:
    before = _hash(folder)
    (entry,) = _entries(tmp_path)
    whole = entry.read_bytes()
    document = json.loads(whole) | {"sha256": "0" * 63}
    entry.write_bytes(damage if isinstance(damage, bytes) else json.dumps(document).encode())
    assert _hash(folder) == before and len(computed) == 2
    assert entry.read_bytes() == whole


def test_a_link_in_place_of_an_entry_is_not_followed(folder: Path, tmp_path: Path, computed: list[str]) -> None:
    _hash(folder)
    (entry,) = _entries(tmp_path)
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": "0" * 64}))
    entry.unlink()
    entry.symlink_to(forged)
    assert _hash(folder) != "0" * 64 and len(computed) == 2


def test_numbers_that_are_not_finite_are_never_kept(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not finite"):
            _hash(folder)
    assert not _entries(tmp_path)


def test_a_cache_that_cannot_be_written_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_hashes, "write_atomically", full)
    _hash(folder)
    assert "the hash is not kept: No space left on device" in capsys.readouterr().err
