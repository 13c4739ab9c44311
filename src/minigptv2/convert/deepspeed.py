"""Converts checkpoint folders of DeepSpeed's `engine.save_checkpoint` (ZeRO 1 to 3, any world size) to exports."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from minigptv2.convert import names
from minigptv2.convert.inputs import KeyReport, refuse_existing
from minigptv2.convert.zero_shards import consolidated
from minigptv2.errors import CheckpointError
from minigptv2.foreign_files import read_regular
from minigptv2.model.base_hashes import hash_bases
from minigptv2.model.bases import names_to_export, open_bases
from minigptv2.model.build import build_model
from minigptv2.model.config import ModelConfig
from minigptv2.model.export import ExportContent, ExportInfo, LineageEntry, save_export, tokenizer_of
from minigptv2.model.weights import canonical_name, check_finite, check_shapes, named_canonical, plain_tensors

LATEST = "latest"
_MAX_TAG = 255
_PATTERN = set("*?[]{}$~%`'\"|<>;&!\\/")
"""Characters of patterns, of paths and of shells. DeepSpeed and scripts around it would read them as such."""


def from_deepspeed(
    checkpoint: Path, output: Path, config: ModelConfig, *, tag: str | None = None, overwrite: bool = False
) -> tuple[ExportInfo, KeyReport]:
    """Write an export of the fp32 master weights. Projector and LoRA keys may also have the published names.

    `config` is the model that was trained. `tag` selects a checkpoint of the folder, by default the one in the file
    `latest`. Nothing of DeepSpeed takes part: `zero_shards` reads tensors and plain values, and runs no code of the
    files. Raises `CheckpointError` for a tag that is no plain folder name, for missing, unknown or empty tensors, and
    for frozen tensors that differ from the base weights of the config.
    """
    refuse_existing(output, overwrite, checkpoint, config.vision_weights, config.language_weights)
    folder = _folder_of(checkpoint, tag or _latest(checkpoint))
    report, found = KeyReport(), {}
    for key, value in consolidated(folder).items():
        name = canonical_name(key)
        name = names.PROJECTOR.get(key) or names.lora_name(key) or name
        if key.endswith("inv_freq"):
            report.drop(str(folder), key, "a buffer, recomputed")
        else:
            found[name] = value
            report.take(str(folder), key, name)
    return _write(found, folder, output, config, report), report


def _write(found: dict[str, Tensor], folder: Path, output: Path, config: ModelConfig, report: KeyReport) -> ExportInfo:
    tokenizer = tokenizer_of(config)
    bases = open_bases(config)
    with torch.device("meta"):
        model = build_model(config, tokenizer.vocab_size)
    wanted = {name: tuple(parameter.shape) for name, parameter in named_canonical(model).items()}
    check_shapes(plain_tensors(found), wanted, str(folder))
    for name, value in found.items():
        check_finite(name, value, str(folder))
    exported = names_to_export(model, config, {})
    missing = [name for name in exported if name not in found]
    if missing:
        raise CheckpointError(f"{folder} has no weights for {len(missing)} parameters, first {missing[0]}")
    for base in bases:
        for name, tensor in base.tensors.items():
            if name in found and name not in exported:
                if not torch.equal(found[name], tensor.read().to(found[name].dtype)):
                    raise CheckpointError(
                        f"{folder}: frozen {name} differs from {base.folder}; set the base weights of the run"
                    )
                key = next(k for k, n in report.taken[str(folder)].items() if n == name)
                del report.taken[str(folder)][key]
                report.drop(str(folder), key, f"frozen, and equal in {base.folder}")
    lineage = [LineageEntry(f"deepspeed {folder.name}", _steps(folder.name))]
    tensors = {name: found[name] for name in exported}
    content = ExportContent(tensors, config, tokenizer, lineage, hash_bases(bases))
    return save_export(output, content, more=report.write)


def _latest(checkpoint: Path) -> str:
    file = checkpoint / LATEST
    if not os.path.lexists(file):
        raise CheckpointError(
            f"{checkpoint} has no file '{LATEST}', which DeepSpeed's save_checkpoint writes; set --tag instead"
        )
    data = read_regular(file, CheckpointError, limit=2 * _MAX_TAG, folder=checkpoint)
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: expected the name of a folder, got bytes that are not UTF-8") from error


def _folder_of(checkpoint: Path, tag: str) -> Path:
    """The folder of a tag. Raises `CheckpointError` unless it is a folder of that very name, not a link, inside."""
    if tag != tag.strip() or not tag.strip(".") or tag.startswith("-") or not tag.isprintable() or _PATTERN & set(tag):
        raise CheckpointError(
            f"{checkpoint}: the tag {tag[:_MAX_TAG]!r} is not a plain folder name, such as global_step1000. If the "
            f"checkpoint is your own, rename its folder, and set --tag or write the name into '{LATEST}'."
        )
    folder = checkpoint / tag
    if len(tag.encode()) > _MAX_TAG or folder.is_symlink() or not folder.is_dir():
        raise CheckpointError(f"{checkpoint} has no folder {tag[:_MAX_TAG]!r} (links do not count); set --tag")
    return folder


def _steps(tag: str) -> int:
    digits = tag.removeprefix("global_step")
    return int(digits) if digits.isdecimal() and len(digits) < 19 else 0
