"""Reads, copies and writes Hugging Face folders of LLaMA models, as safetensors or `.bin`, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minigptv2.convert.inputs import KeyReport, tensors_only
from minigptv2.convert.names import LANGUAGE
from minigptv2.convert.torch_files import read_torch
from minigptv2.errors import CheckpointError
from minigptv2.files import finish_file, new_file, write_atomically
from minigptv2.foreign_files import open_regular
from minigptv2.model.backbones import FOLDER_CONFIG
from minigptv2.model.bases import open_llama, untie
from minigptv2.model.weights import Tensors, plain_tensors, read_safetensors
from minigptv2.progress_bars import progress_bar

SHARD_BYTES = 4_000_000_000
"""The largest file that is written, which is also the memory that writing needs."""
INDEX_FILE = "model.safetensors.index.json"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files of a Hugging Face folder that are copied with the weights."""


@dataclass(frozen=True)
class LlamaSource:
    """A language model folder: its unread tensors by the names of this package, and the files that contain them."""

    folder: Path
    tensors: Tensors
    files: tuple[Path, ...]


def open_llama_source(folder: Path, report: KeyReport) -> LlamaSource:
    """The tensors of a folder, from its safetensors if there are any, else from `pytorch_model*.bin`.

    Raises `CheckpointError` for a folder without weights or with invalid files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        tensors = open_llama(folder)
        for key in read_safetensors(files, folder):
            if LANGUAGE + key not in tensors:
                report.drop(str(folder), key, "a buffer, recomputed")
    else:
        files = sorted(folder.glob("pytorch_model*.bin"))
        tensors = {}
        for file in files:
            for key, value in tensors_only(read_torch(file, folder=folder), file).items():
                if key.endswith("rotary_emb.inv_freq"):
                    report.drop(str(folder), key, "a buffer, recomputed")
                else:
                    tensors |= plain_tensors({LANGUAGE + key: value})
        tensors = untie(tensors, folder)
    if not tensors:
        raise CheckpointError(f"{folder} has neither *.safetensors nor pytorch_model*.bin")
    for name in tensors:
        report.take(str(folder), name.removeprefix(LANGUAGE), name)
    return LlamaSource(folder, tensors, tuple(files))


def copy_llama(source: LlamaSource, target: Path) -> None:
    """Copy the folder: safetensors byte by byte, `.bin` files converted to safetensors."""
    target.mkdir()
    copy_small_files(source.folder, target)
    if source.files[0].suffix == ".bin":
        write_llama(source.tensors, target)
        return
    if len(source.files) > 1:  # Hugging Face needs an index to find several files. A copied one may name others.
        weight_map = {key: file.name for file in source.files for key in read_safetensors([file], source.folder)}
        document = {"metadata": {}, "weight_map": weight_map}
        write_atomically(target / INDEX_FILE, json.dumps(document, indent=1).encode())
    total = sum(file.stat().st_size for file in source.files)
    with progress_bar(total=total, unit="B", unit_scale=True, desc="language model") as bar:
        for file in source.files:
            with open_regular(file, CheckpointError, folder=source.folder) as stream:
                with open(target / file.name, "xb") as copy:
                    shutil.copyfileobj(stream, copy, 8 << 20)
                bar.update(stream.tell())
            finish_file(target / file.name)


def copy_small_files(source: Path, target: Path) -> None:
    """Copy the config and tokenizer files that exist. Raises `CheckpointError` for a link out of `source`."""
    for name in SMALL_FILES:
        if os.path.lexists(source / name):
            with open_regular(source / name, CheckpointError, folder=source) as stream, new_file(target / name) as copy:
                shutil.copyfileobj(stream, copy)


def write_llama(tensors: Tensors, target: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as a Hugging Face folder, in files with an index. One file at a time is in memory."""
    from safetensors.torch import save_file

    pending: dict[str, Tensor] = {}
    size = total = 0
    files: list[tuple[Path, list[str]]] = []

    def flush() -> None:
        nonlocal size
        file = target / f"model-{len(files) + 1:05d}.part"
        save_file(pending, str(file), metadata={"format": "pt"})
        finish_file(file)
        files.append((file, list(pending)))
        pending.clear()
        size = 0

    for name, tensor in progress_bar(sorted(tensors.items()), desc="language model", unit="tensor"):
        value = tensor.read().contiguous()
        bytes_ = value.numel() * value.element_size()
        if pending and size + bytes_ > shard_bytes:
            flush()
        pending[name.removeprefix(LANGUAGE)] = value.clone()
        size, total = size + bytes_, total + bytes_
    flush()
    if len(files) == 1:
        files[0][0].rename(target / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (file, keys) in enumerate(files, 1):
        final = target / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file.rename(final)
        weight_map |= dict.fromkeys(keys, final.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_atomically(target / INDEX_FILE, json.dumps(index, indent=1).encode())


def write_llama_config(config: dict[str, Any], target: Path, dtype: str) -> None:
    """Write `config.json` with the dtype of the weights. Embeddings and head are two tensors, so they are not tied."""
    changed = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype") and key[0] != "_"}
    changed |= {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "torch_dtype": dtype}
    write_atomically(target / FOLDER_CONFIG, json.dumps(changed, indent=1).encode())
