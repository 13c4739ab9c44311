"""The published files (EVA ViT, LLaMA-2 folder, trained checkpoint) to a model folder of ours, and an export back.

What becomes of each key is written to `conversion.json` in the new folder. A key without a place, a missing one and a
size that does not fit are errors, and nothing is written then: the published loader drops a LoRA that it cannot place
without a word.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from minigptv2.convert import names
from minigptv2.convert.inputs import KeyReport, read_torch, refuse_existing, report_of, tensors_only
from minigptv2.convert.llama import LlamaSource, copy_llama, open_llama_source
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import finish_file
from minigptv2.model.backbones import (
    LANGUAGE_MODELS,
    TOKENS_PER_GROUP,
    VISION_ENCODERS,
    LanguageModelSpec,
    Sizes,
    VisionEncoderSpec,
    language_spec,
)
from minigptv2.model.bases import VISION_FILE
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import INSIDE, ExportInfo, LineageEntry, check_weights_file, load_info, save_export
from minigptv2.model.weights import (
    Tensors,
    check_shapes,
    hash_tensors,
    named_canonical,
    part_of,
    plain_tensors,
)
from minigptv2.tokenizer import load_tokenizer

PUBLISHED_ROWS = ("eva_vit_g", ("llama2_7b", "llama2_13b"))
"""The published pairs, whose LoRA scale is known where a file does not say it."""
ARCHITECTURE = "minigpt_v2"
_UNUSED_VIT = ("norm.", "fc_norm.", "head.", "mask_token", "rel_pos_bias.", "lm_head.")
_VIT_SIZES = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}
"""Keys that sizes are read from, and their dimensions."""
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_NESTED = ("model", "module", "state_dict")


@dataclass(frozen=True)
class Told:
    """What an operator says because no file does. None: look elsewhere."""

    vision_heads: int | None = None
    vision_depth: int | None = None
    image_size: int | None = None
    lora_alpha: int | None = None


def from_published(
    vision: Path,
    language_model: Path,
    output: Path,
    *,
    checkpoint: Path | None = None,
    told: Told | None = None,
    copy: bool = True,
    overwrite: bool = False,
) -> tuple[ExportInfo, KeyReport]:
    """Write a model folder of ours. Without a checkpoint it holds bases only: something to train a first stage on.

    `copy` False leaves the language model where it is and refers to it. Needs the memory of one vision file at most.
    """
    refuse_existing(output, overwrite, vision, language_model, checkpoint)
    told = told or Told()
    report = KeyReport()
    vit = _vit_state(vision)
    trained, config = _checkpoint_state(checkpoint) if checkpoint else ({}, {})
    row, row_name = _vision_row(vit, vision, told, config)
    language = language_spec(str(language_model.resolve()))  # a folder, also if it bears the name of a row
    llama = open_llama_source(language_model, report)
    vision_tensors = _map_vision(vit, row, vision, report)
    lora, trained_tensors = _map_checkpoint(trained, config, checkpoint, report) if checkpoint else (0, None)
    if not copy and llama.files[0].suffix == ".bin":
        raise ConfigError(f"{language_model} holds no safetensors: without --no-copy it is written as such")
    alpha = _alpha(told, config, row_name, language, str(checkpoint)) if lora else LoraConfig().alpha
    model = ModelConfig(
        vision_encoder=row_name or INSIDE[0],
        vision_weights=INSIDE[0],
        language_model=_row_name(LANGUAGE_MODELS, language) or _llama_place(language_model, copy),
        language_weights=_llama_place(language_model, copy),
        lora=LoraConfig(r=lora, alpha=alpha, target_modules=_targets(trained_tensors or {})),
    )
    if checkpoint is None:
        model = replace(model, lora=LoraConfig())
    sizes = Sizes(row, language)
    tokenizer = load_tokenizer(language_model)
    _check_whole(model, sizes, tokenizer.vocab_size, vision_tensors, llama, trained_tensors, vision, checkpoint)

    def write_bases(folder: Path) -> None:
        from safetensors.torch import save_file

        with tqdm(total=_bytes(vision_tensors.values()), unit="B", unit_scale=True, desc="vision encoder") as bar:
            save_file({n: t.contiguous() for n, t in vision_tensors.items()}, str(folder / VISION_FILE))
            finish_file(folder / VISION_FILE)
            bar.update(bar.total)
        if copy:
            copy_llama(llama, folder / INSIDE[1])
        report.write(folder)

    base_sha256 = {
        "vision_encoder": hash_tensors(plain_tensors(vision_tensors)),
        "language_model": hash_tensors(llama.tensors),
    }
    files = [file.name for file in (vision, language_model, checkpoint) if file]
    lineage = LineageEntry("published" if checkpoint else "bases", 0, {"files": files})
    info = save_export(
        output,
        trained_tensors,
        model,
        tokenizer,
        [lineage],
        base_sha256=base_sha256,
        sizes=sizes,
        more=write_bases,
        inside=True,
    )
    return info, report


def _llama_place(folder: Path, copy: bool) -> str:
    return INSIDE[1] if copy else str(folder.resolve())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _vit_state(file: Path) -> dict[str, Tensor]:
    document = read_torch(file)
    while isinstance(document, dict) and not any(isinstance(value, Tensor) for value in document.values()):
        inner = next((document[key] for key in _NESTED if isinstance(document.get(key), dict)), None)
        if inner is None:
            break
        document = inner
    state = tensors_only(document, file)
    for key, dimensions in _VIT_SIZES.items():
        if key not in state or state[key].ndim != dimensions:
            raise CheckpointError(f"{file}: not a published vision encoder: no {key} of {dimensions} dimensions")
    return state


def _checkpoint_state(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of a published checkpoint, and the `model` part of its config."""
    document = read_torch(file)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise CheckpointError(f'{file}: not a published checkpoint: it has no "model"')
    config = document.get("config")
    config = config.get("model") if isinstance(config, dict) else None
    return tensors_only(document["model"], file), config if isinstance(config, dict) else {}


def _vision_row(
    vit: dict[str, Tensor], file: Path, told: Told, config: dict[str, Any]
) -> tuple[VisionEncoderSpec, str | None]:
    """Sizes of the vision encoder, and the table's name for them if it has one.

    Width, patch and MLP are read from the file; heads, depth used and image size are those told, or the checkpoint's,
    or those of the row with the same widths.
    """
    width, _, patch, _ = vit["patch_embed.proj.weight"].shape
    mlp_width = vit["blocks.0.mlp.fc1.weight"].shape[0]
    published = VISION_ENCODERS[PUBLISHED_ROWS[0]]
    same = (published.width, published.patch_size, published.mlp_width) == (width, patch, mlp_width)
    known = published if same else None
    blocks = 1 + max(int(match[1]) for match in map(_BLOCK.match, vit) if match)
    heads = told.vision_heads or (known.heads if known else None)
    image_size = told.image_size or _number(config, "image_size") or (known.image_size if known else None)
    if heads is None or image_size is None:
        missing = "--vision-heads" if heads is None else "--image-size"
        raise ConfigError(f"{file} does not say it, nor does a row of the model tables: give {missing}")
    if heads < 1 or width % heads:
        raise ConfigError(f"--vision-heads {heads} does not divide the width {width} of {file}")
    if image_size < 1 or image_size % patch or (image_size // patch) ** 2 % TOKENS_PER_GROUP:
        raise ConfigError(f"--image-size {image_size}: want a multiple of {patch} px, its patches one of 4")
    depth = told.vision_depth or (known.depth if known else blocks)
    row = VisionEncoderSpec(image_size, patch, width, depth, heads, mlp_width)
    return row, _row_name(VISION_ENCODERS, row)


def _number(config: dict[str, Any], key: str) -> int | None:
    """A whole number of the checkpoint's config, None if it is not there."""
    value = config.get(key)
    return int(value) if isinstance(value, int | float | str) and str(value).isdigit() else None


def _row_name(table: dict[str, Any], row: Any) -> str | None:
    return next((name for name, known in table.items() if known == row), None)


def _map_vision(vit: dict[str, Tensor], row: VisionEncoderSpec, file: Path, report: KeyReport) -> dict[str, Tensor]:
    """Our names and layout: positions resized, biases of q and v joined with zeros for k, an identity norm."""
    source, mapped = str(file), {}
    joint: dict[str, dict[str, str]] = {}
    for key, value in vit.items():
        bias, name = names.VIT_BIAS.fullmatch(key), names.vision_name(key)
        block = _BLOCK.match(key)
        if block and int(block[1]) >= row.depth:
            report.drop(source, key, f"the model uses the first {row.depth} blocks")
        elif bias:
            joint.setdefault(bias[1], {})[bias[2]] = key
            report.take(source, key, names.qkv_bias_name(bias[1]))
        elif name:
            mapped[name] = _resize_positions(value, row) if key == "pos_embed" else value
            report.take(source, key, name)
        elif key in names.FINAL_NORM:
            mapped[names.FINAL_NORM[key]] = value
            report.take(source, key, names.FINAL_NORM[key])
        elif key.startswith(_UNUSED_VIT):
            report.drop(source, key, "not used by MiniGPT-v2, which has no head and no norm of its own after the ViT")
        else:
            raise CheckpointError(f"{file}: {key} has no place in this model")
    for number, keys in joint.items():
        if set(keys) != {"q", "v"}:
            raise CheckpointError(f"{file}: {' '.join(keys.values())} alone; want q_bias and v_bias")
        q, v = vit[keys["q"]], vit[keys["v"]]
        mapped[names.qkv_bias_name(number)] = torch.cat([q, torch.zeros_like(q), v])
    dtype = vit["pos_embed"].dtype
    for name, value in zip(names.FINAL_NORM.values(), (torch.ones(row.width), torch.zeros(row.width)), strict=True):
        mapped.setdefault(name, value.to(dtype))
    return mapped


def _resize_positions(positions: Tensor, row: VisionEncoderSpec) -> Tensor:
    """[1, 1 + g * g, D] to the row's grid: bicubic, corners not aligned, the class token untouched (published code)."""
    old, new = math.isqrt(positions.shape[1] - 1), row.image_size // row.patch_size
    if positions.shape[1] != 1 + old * old:
        raise CheckpointError(f"pos_embed has {positions.shape[1]} positions: not a class token and a square")
    if old == new:
        return positions
    patches = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = interpolate(patches, size=(new, new), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    # As the published code does, the result stays in fp32 whatever the file's type.
    return torch.cat([positions[:, :1].float(), patches], dim=1)


def _map_checkpoint(
    state: dict[str, Tensor], config: dict[str, Any], file: Path, report: KeyReport
) -> tuple[int, dict[str, Tensor]]:
    """LoRA's rank, and projector and LoRA under our names, with the norm after the encoder where a file holds it."""
    source, mapped = str(file), {}
    for key, value in state.items():
        name = names.PROJECTOR.get(key) or names.lora_name(key) or names.FINAL_NORM.get(key)
        if name in mapped:
            raise CheckpointError(f"{file}: {key}: there already, in the other spelling")
        if name:
            mapped[name] = value
            report.take(source, key, name)
        elif key.endswith("rotary_emb.inv_freq"):
            report.drop(source, key, "a buffer, computed anew")
        else:
            raise CheckpointError(f"{file}: {key} has no place in this model")
    for key, name in names.PROJECTOR.items():
        if name not in mapped:
            raise CheckpointError(f"{file}: no {key}: not a published MiniGPT-v2 checkpoint")
    ranks = {value.shape[0] for name, value in mapped.items() if ".lora_A." in name}
    if not ranks:
        raise CheckpointError(f"{file}: no LoRA in it: without it the language model is plain LLaMA-2")
    if len(ranks) > 1:
        raise CheckpointError(f"{file}: LoRA of several ranks: {sorted(ranks)}")
    rank, told = ranks.pop(), _number(config, "lora_r")
    if told not in (None, rank):
        raise CheckpointError(f"{file}: its LoRA has rank {rank}, its config says {told}")
    wanted, found = config.get("lora_target_modules") or LoraConfig().target_modules, _targets(mapped)
    missing = sorted(set(map(str, wanted)) - set(found))
    if missing:
        raise CheckpointError(f"{file}: half a LoRA: on {', '.join(found)}, none on {', '.join(missing)}")
    return rank, mapped


def _targets(trained: dict[str, Tensor]) -> list[str]:
    """The modules that have adapters, as `LoraConfig` names them."""
    found = {name.split(".")[-3] for name in trained if ".lora_A." in name}
    return sorted(found) or list(LoraConfig().target_modules)


def _alpha(told: Told, config: dict[str, Any], vision: str | None, language: LanguageModelSpec, file: str) -> int:
    alpha = told.lora_alpha or _number(config, "lora_alpha")
    if alpha:
        return alpha
    if vision == PUBLISHED_ROWS[0] and _row_name(LANGUAGE_MODELS, language) in PUBLISHED_ROWS[1]:
        return LoraConfig().alpha
    raise ConfigError(f"{file} does not say by how much its LoRA is scaled: give --lora-alpha (16 as published)")


def _check_whole(
    model: ModelConfig,
    sizes: Sizes,
    vocab_size: int,
    vision: dict[str, Tensor],
    llama: LlamaSource,
    trained: dict[str, Tensor] | None,
    vision_file: Path,
    checkpoint: Path | None,
) -> None:
    """Raise `CheckpointError` unless the three sources together fill a model of these sizes, exactly."""
    with torch.device("meta"):
        built = build_model(model, vocab_size, sizes=sizes)
    wanted = {name: tuple(parameter.shape) for name, parameter in named_canonical(built).items()}
    given: list[tuple[str, Tensors]] = [
        (str(vision_file), plain_tensors(vision)),
        (str(llama.folder), llama.tensors),
    ]
    if trained is not None:
        given.append((str(checkpoint), plain_tensors(trained)))
    placed: set[str] = set()
    for source, tensors in given:
        check_shapes(tensors, wanted, source)
        placed |= set(tensors)
    parts = {"vision_encoder": vision_file, "language_model": llama.folder}
    if checkpoint is not None:
        parts |= {"projector": checkpoint, "lora": checkpoint}
    for name in wanted:
        if name not in placed and part_of(name) in parts:
            raise CheckpointError(f"{parts[part_of(name)]}: no {name} (our name) of {wanted[name]}")


def to_published(export: Path, output: Path, *, newer_spelling: bool = False, overwrite: bool = False) -> KeyReport:
    """Write the published loader's `.pth`: projector and LoRA, bit for bit, for their demo to run.

    `newer_spelling`: LoRA keys as PEFT >= 0.3 writes them. Raises `CheckpointError` for an export that the published
    format cannot hold (other weights trained, no LoRA).
    """
    refuse_existing(output, overwrite, export)
    info = load_info(export)
    check_weights_file(info)
    report = KeyReport()
    state: dict[str, Tensor] = {}
    for name, tensor in tqdm(info.tensors.items(), desc=output.name, unit="tensor"):
        key = names.published_name(name)
        if key is None:
            raise CheckpointError(
                f"{export}: {name} was trained or has no base folder; published files hold projector and LoRA only"
            )
        if newer_spelling:
            key = key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        state[key] = tensor.read()
        report.take(str(export), name, key)
    lora, sizes = info.model.lora, info.sizes
    if not lora.r or sizes.vision_encoder.family != "eva":
        raise CheckpointError(
            f"{export}: published files hold a LoRA beside EVA's ViT; this has r={lora.r}, "
            f"{sizes.vision_encoder.family}"
        )
    document: dict[str, Any] = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "config": {
            "model": {
                "arch": ARCHITECTURE,
                "image_size": sizes.vision_encoder.image_size,
                "lora_r": lora.r,
                "lora_alpha": lora.alpha,
                "lora_target_modules": list(lora.target_modules),
            }
        },
        "scaler": None,
        "epoch": 0,
    }
    save_torch(document, output)
    report.write_file(report_of(output))
    return report


def save_torch(document: Any, output: Path) -> None:
    """`torch.save`, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        torch.save(document, temporary)
        finish_file(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
