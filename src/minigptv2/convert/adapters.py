"""Converts an export to a PEFT adapter, or to a model folder with LoRA merged into the language model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigptv2.convert.inputs import KeyReport, refuse_existing
from minigptv2.convert.llama import copy_small_files, write_llama, write_llama_config
from minigptv2.convert.names import LANGUAGE, PEFT_PREFIX
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import finish_file, write_atomically
from minigptv2.model.backbones import FOLDER_CONFIG, read_folder_config
from minigptv2.model.base_hashes import hash_bases
from minigptv2.model.bases import VISION_FILE, Base, check_base_hashes, open_bases, open_language_base
from minigptv2.model.export import (
    ExportContent,
    ExportInfo,
    LineageEntry,
    load_info,
    new_folder,
    open_weights,
    save_export,
    tokenizer_in,
    with_bases,
)
from minigptv2.model.export_paths import INSIDE
from minigptv2.model.minigptv2 import llama_config
from minigptv2.model.weights import LazyTensor, Tensors, hash_tensors, part_of, plain_tensors, stored_dtype
from minigptv2.progress_bars import progress_bar

PROJECTOR_FILE, ADAPTER_FILE = "projector.safetensors", "adapter_model.safetensors"


def to_peft(export: Path, output: Path, *, language_weights: str | None = None, overwrite: bool = False) -> KeyReport:
    """Write the projector, and the LoRA as an adapter for `peft.PeftModel.from_pretrained` on the original LLaMA.

    Raises `CheckpointError` for an export without a LoRA or with a trained language model.
    """
    import peft
    from safetensors.torch import save_file

    refuse_existing(output, overwrite, export)
    info = with_bases(load_info(export), None, language_weights)
    tensors = open_weights(info)
    folder = info.model.language_weights
    if folder and Path(folder).is_dir():
        base = open_language_base(Path(folder))
        check_base_hashes(info.base_sha256, hash_bases([base]), str(export), [base])
    if not info.model.lora.r:
        raise CheckpointError(f"{export} has no LoRA (r=0) for an adapter; `convert merge` writes a complete model")
    if any(part_of(name) == "language_model" for name in tensors):
        raise CheckpointError(
            f"{export}: the language model was trained, so an adapter on the original one would differ"
        )
    adapter, projector, report = {}, {}, KeyReport()
    for name, tensor in progress_bar(tensors.items(), desc=output.name, unit="tensor"):
        if part_of(name) == "lora":
            key = PEFT_PREFIX + name.removeprefix(LANGUAGE)
            adapter[key] = tensor.read()
            report.take(str(export), name, f"{ADAPTER_FILE}: {key}")
        elif part_of(name) == "projector":
            key = name.removeprefix("projector.")
            projector[key] = tensor.read()
            report.take(str(export), name, f"{PROJECTOR_FILE}: {key}")
        else:
            report.drop(str(export), name, "neither LoRA nor projector, which are all that this format contains")
    lora = info.model.lora
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=str(Path(folder).resolve()) if folder and Path(folder).is_dir() else folder,
    )
    with new_folder(output) as made:
        report.write(made)
        config.save_pretrained(str(made))
        for part, file in ((adapter, ADAPTER_FILE), (projector, PROJECTOR_FILE)):
            save_file(part, str(made / file), metadata={"format": "pt"})
            finish_file(made / file)
    return report


def merge(
    export: Path,
    output: Path,
    *,
    dtype: str | None = None,
    vision_weights: str | None = None,
    language_weights: str | None = None,
    overwrite: bool = False,
) -> tuple[ExportInfo, KeyReport]:
    """Write a model folder without adapters: W + alpha / r * B A, in fp32, then cast.

    `<output>/language_model` is a Hugging Face LLaMA folder, and `<output>` a model folder of this package. `dtype`
    defaults to that of the base weights of the language model, or float32 without them. Raises `CheckpointError` for
    base weights other than those of the export.
    """
    refuse_existing(output, overwrite, export, vision_weights, language_weights)
    info = with_bases(load_info(export), vision_weights, language_weights)
    trained = open_weights(info)
    bases = open_bases(info.model)
    check_base_hashes(info.base_sha256, hash_bases(bases), str(export), bases)
    everything: Tensors = {}
    report = KeyReport()
    for source, tensors in [*((str(base.folder), base.tensors) for base in bases), (str(export), trained)]:
        everything |= tensors
        for name in tensors:
            merged_into = f"{name.split('.lora_')[0]}.weight (merged)" if part_of(name) == "lora" else name
            report.take(source, name, merged_into)
    language = {name: tensor for name, tensor in everything.items() if part_of(name) == "language_model"}
    cast = _dtype(dtype) if dtype else stored_dtype(language)
    scale = info.model.lora.alpha / info.model.lora.r if info.model.lora.r else 0.0
    merged = {name: _merged(name, tensor, everything, scale, cast) for name, tensor in language.items()}
    _check_all_used(info, everything, language)
    vision = {name: tensor.read() for name, tensor in everything.items() if part_of(name) == "vision_encoder"}
    projector = {name: tensor.read() for name, tensor in everything.items() if part_of(name) == "projector"}
    tokenizer = tokenizer_in(info)
    model = replace(
        info.model,
        vision_encoder=_inside(info.model.vision_encoder, INSIDE[0]),
        vision_weights=INSIDE[0],
        language_model=_inside(info.model.language_model, INSIDE[1]),
        language_weights=INSIDE[1],
        lora=replace(info.model.lora, r=0),
        trainable=["projector"],
    )

    def write_bases(folder: Path) -> None:
        from safetensors.torch import save_file

        report.write(folder)
        save_file(vision, str(folder / VISION_FILE))
        finish_file(folder / VISION_FILE)
        inner = folder / INSIDE[1]
        inner.mkdir()
        stock = _llama_folder(bases)
        if stock:
            copy_small_files(stock, inner)
        write_llama(merged, inner)
        write_llama_config(_stock_config(stock, info, tokenizer.vocab_size), inner, str(cast).removeprefix("torch."))
        if not (inner / tokenizer.path.name).is_file():
            write_atomically(inner / tokenizer.path.name, tokenizer.data)

    base_sha256 = {
        "vision_encoder": hash_tensors(plain_tensors(vision), str(export)),
        "language_model": hash_tensors(merged, f"{export} merged in {cast}"),
    }
    lineage = [*info.lineage, LineageEntry("merged", 0, {"parent": info.weights_sha256})]
    content = ExportContent(projector, model, tokenizer, lineage, base_sha256, info.sizes)
    written = save_export(output, content, more=write_bases, inside=True)
    return written, report


def _inside(name: str, place: str) -> str:
    """The name of a spec unchanged, or for a folder the path inside the new folder."""
    return place if Path(name).is_dir() else name


def _stock_config(folder: Path | None, info: ExportInfo, vocab_size: int) -> dict[str, Any]:
    """The Hugging Face config of the language model: from its folder, or built from its sizes without one."""
    if folder:
        return read_folder_config(folder / FOLDER_CONFIG)
    return llama_config(info.sizes.language_model, vocab_size).to_dict()


def _llama_folder(bases: list[Base]) -> Path | None:
    return next((base.folder for base in bases if base.part == "language_model"), None)


def _merged(name: str, tensor: LazyTensor, everything: Tensors, scale: float, dtype: torch.dtype) -> LazyTensor:
    """The tensor in `dtype`, with its adapter, if it has one, added in fp32."""
    module = name.removesuffix(".weight")
    down, up = everything.get(f"{module}.lora_A.weight"), everything.get(f"{module}.lora_B.weight")
    if down is None or up is None:
        return LazyTensor(tensor.shape, dtype, partial(_cast, tensor, dtype))

    def read() -> Tensor:
        update = scale * (up.read().float() @ down.read().float())
        return (tensor.read().float() + update).to(dtype)

    return LazyTensor(tensor.shape, dtype, read)


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> Tensor:
    return tensor.read().to(dtype)


def _check_all_used(info: ExportInfo, everything: Tensors, language: Tensors) -> None:
    for name in everything:
        if part_of(name) == "lora" and f"{name.rsplit('.lora_', 1)[0]}.weight" not in language:
            raise CheckpointError(f"{info.folder}: {name} belongs to a layer that the language model does not have")


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"--dtype must be one of {', '.join(known)}, got {name}")
    return known[name]
