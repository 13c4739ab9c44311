"""Converts the published files (EVA ViT, LLaMA-2 folder, trained checkpoint) to a model folder, and an export back.

`conversion.json` in the new folder lists what was done with each key. An unexpected key, a missing key or a wrong size
is an error, and nothing is written. (The published loader silently drops a LoRA that does not match.)
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

from minigptv2.convert import names
from minigptv2.convert.inputs import (
    KeyReport,
    Source,
    check_complete,
    refuse_existing,
    report_of,
    tensors_only,
)
from minigptv2.convert.llama import copy_llama, open_llama_source
from minigptv2.convert.torch_files import read_torch
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
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import (
    ExportContent,
    ExportInfo,
    LineageEntry,
    load_info,
    open_weights,
    save_export,
)
from minigptv2.model.export_paths import INSIDE
from minigptv2.model.weights import check_finite, hash_tensors, plain_tensors
from minigptv2.progress_bars import progress_bar
from minigptv2.tokenizer import load_tokenizer

PUBLISHED_SPECS = ("eva_vit_g", ("llama2_7b", "llama2_13b"))
"""The published pairs, whose LoRA scale is known if a file does not contain it."""
ARCHITECTURE = "minigpt_v2"
_UNUSED_VIT = ("norm.", "fc_norm.", "head.", "mask_token", "rel_pos_bias.", "lm_head.")
_VIT_SIZES = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}
"""The keys that sizes are read from, and their number of dimensions."""
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_NESTED = ("model", "module", "state_dict")
_MAX_NESTED = 4


@dataclass(frozen=True)
class ConversionOptions:
    """Sizes that the vision file and the LoRA do not contain. None: taken from the checkpoint or a known spec."""

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
    options: ConversionOptions | None = None,
    copy: bool = True,
    overwrite: bool = False,
) -> tuple[ExportInfo, KeyReport]:
    """Write a model folder. Without a checkpoint it contains base weights only, to train a first stage on.

    With `copy=False` the folder refers to the language model instead of copying it. The memory needed is that of the
    vision file. Raises `CheckpointError` for files that do not match and `ConfigError` for missing `options`.
    """
    refuse_existing(output, overwrite, vision, language_model, checkpoint)
    options = options or ConversionOptions()
    report = KeyReport()
    vit = _vit_state(vision)
    trained, config = _checkpoint_state(checkpoint) if checkpoint else ({}, {})
    spec, spec_name = _vision_spec(vit, vision, options, config)
    language = language_spec(str(language_model.resolve()))  # a folder, even if its name is that of a spec
    llama = open_llama_source(language_model, report)
    vision_tensors = _map_vision(vit, spec, vision, report)
    lora, trained_tensors = _map_checkpoint(trained, config, checkpoint, report) if checkpoint else (0, None)
    if not copy and llama.files[0].suffix == ".bin":
        raise ConfigError(f"{language_model} has no safetensors to refer to; without --no-copy they are written")
    alpha = _alpha(options, config, spec_name, language, str(checkpoint)) if lora else LoraConfig().alpha
    model = ModelConfig(
        vision_encoder=spec_name or INSIDE[0],
        vision_weights=INSIDE[0],
        language_model=_spec_name(LANGUAGE_MODELS, language) or _llama_path(language_model, copy),
        language_weights=_llama_path(language_model, copy),
        lora=LoraConfig(r=lora, alpha=alpha, target_modules=_targets(trained_tensors or {})),
    )
    if checkpoint is None:
        model = replace(model, lora=LoraConfig())
    sizes = Sizes(spec, language)
    tokenizer = load_tokenizer(language_model)
    sources = [
        Source(vision, plain_tensors(vision_tensors), ("vision_encoder",)),
        Source(llama.folder, llama.tensors, ("language_model",)),
    ]
    if checkpoint is not None and trained_tensors is not None:
        sources.append(Source(checkpoint, plain_tensors(trained_tensors), ("projector", "lora")))
    check_complete(model, sizes, tokenizer.vocab_size, sources)

    def write_bases(folder: Path) -> None:
        from safetensors.torch import save_file

        with progress_bar(
            total=_bytes(vision_tensors.values()), unit="B", unit_scale=True, desc="vision encoder"
        ) as bar:
            save_file({n: t.contiguous() for n, t in vision_tensors.items()}, str(folder / VISION_FILE))
            finish_file(folder / VISION_FILE)
            bar.update(bar.total)
        if copy:
            copy_llama(llama, folder / INSIDE[1])
        report.write(folder)

    base_sha256 = {
        "vision_encoder": hash_tensors(plain_tensors(vision_tensors), str(vision)),
        "language_model": hash_tensors(llama.tensors, str(llama.folder)),
    }
    files = [file.name for file in (vision, language_model, checkpoint) if file]
    lineage = LineageEntry("published" if checkpoint else "bases", 0, {"files": files})
    content = ExportContent(trained_tensors, model, tokenizer, [lineage], base_sha256, sizes)
    info = save_export(output, content, more=write_bases, inside=True)
    return info, report


def _llama_path(folder: Path, copy: bool) -> str:
    return INSIDE[1] if copy else str(folder.resolve())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _vit_state(file: Path) -> dict[str, Tensor]:
    document = read_torch(file)
    for _ in range(_MAX_NESTED):
        if not isinstance(document, dict) or any(isinstance(value, Tensor) for value in document.values()):
            break
        inner = next((document[key] for key in _NESTED if isinstance(document.get(key), dict)), None)
        if inner is None:
            break
        document = inner
    state = tensors_only(document, file)
    for key, dimensions in _VIT_SIZES.items():
        if key not in state or state[key].ndim != dimensions:
            raise CheckpointError(
                f"{file} is no published vision encoder: it has no {key} with {dimensions} dimensions"
            )
    return state


def _checkpoint_state(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of a published checkpoint, and the `model` section of its config."""
    document = read_torch(file)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise CheckpointError(f'{file} is not a published checkpoint: it has no "model"')
    config = document.get("config")
    config = config.get("model") if isinstance(config, dict) else None
    return tensors_only(document["model"], file), config if isinstance(config, dict) else {}


def _vision_spec(
    vit: dict[str, Tensor], file: Path, options: ConversionOptions, config: dict[str, Any]
) -> tuple[VisionEncoderSpec, str | None]:
    """The sizes of the vision encoder, and the name of the spec with these sizes, if there is one.

    Width, patch size and MLP width are read from the file. Heads, depth and image size come from `options`, else from
    the checkpoint, else from the published spec if it has the same widths.
    """
    width, _, patch, _ = vit["patch_embed.proj.weight"].shape
    mlp_width = vit["blocks.0.mlp.fc1.weight"].shape[0]
    published = VISION_ENCODERS[PUBLISHED_SPECS[0]]
    same = (published.width, published.patch_size, published.mlp_width) == (width, patch, mlp_width)
    known = published if same else None
    blocks = 1 + max(int(match[1]) for match in map(_BLOCK.match, vit) if match)
    heads = options.vision_heads or (known.heads if known else None)
    image_size = options.image_size or _number(config, "image_size") or (known.image_size if known else None)
    if heads is None or image_size is None:
        missing = "--vision-heads" if heads is None else "--image-size"
        raise ConfigError(f"{missing} is required: neither {file} nor a known spec contains it")
    if heads < 1 or width % heads:
        raise ConfigError(f"--vision-heads must divide the width {width} of {file}, got {heads}")
    if image_size < 1 or image_size % patch or (image_size // patch) ** 2 % TOKENS_PER_GROUP:
        raise ConfigError(f"--image-size must be a multiple of {patch} px, with 4 * n patches, got {image_size}")
    depth = options.vision_depth or (known.depth if known else blocks)
    spec = VisionEncoderSpec(image_size, patch, width, depth, heads, mlp_width)
    return spec, _spec_name(VISION_ENCODERS, spec)


def _number(config: dict[str, Any], key: str) -> int | None:
    """A whole number from the config of the checkpoint, or None if it is missing."""
    value = config.get(key)
    return int(value) if isinstance(value, int | float | str) and str(value).isdigit() else None


def _spec_name(table: dict[str, Any], spec: Any) -> str | None:
    return next((name for name, known in table.items() if known == spec), None)


def _map_vision(vit: dict[str, Tensor], spec: VisionEncoderSpec, file: Path, report: KeyReport) -> dict[str, Tensor]:
    """The vision tensors by the names of this package.

    Positions are resized, the biases of q and v are joined with zeros for k, and a missing norm is the identity.
    """
    source, mapped = str(file), {}
    joint: dict[str, dict[str, str]] = {}
    for key, value in vit.items():
        bias, name = names.VIT_BIAS.fullmatch(key), names.vision_name(key)
        block = _BLOCK.match(key)
        if block and int(block[1]) >= spec.depth:
            report.drop(source, key, f"the model uses the first {spec.depth} blocks")
            continue
        if bias or name or key in names.FINAL_NORM:
            check_finite(key, value, source)
        if bias:
            joint.setdefault(bias[1], {})[bias[2]] = key
            report.take(source, key, names.qkv_bias_name(bias[1]))
        elif name:
            mapped[name] = _resize_positions(value, spec) if key == "pos_embed" else value
            report.take(source, key, name)
        elif key in names.FINAL_NORM:
            mapped[names.FINAL_NORM[key]] = value
            report.take(source, key, names.FINAL_NORM[key])
        elif key.startswith(_UNUSED_VIT):
            report.drop(source, key, "not used by MiniGPT-v2, which has no head and no norm inside the ViT")
        else:
            raise CheckpointError(f"{file}: unexpected key {key}")
    for number, keys in joint.items():
        if set(keys) != {"q", "v"}:
            raise CheckpointError(f"{file}: expected q_bias and v_bias, got only {' '.join(keys.values())}")
        q, v = vit[keys["q"]], vit[keys["v"]]
        mapped[names.qkv_bias_name(number)] = torch.cat([q, torch.zeros_like(q), v])
    dtype = vit["pos_embed"].dtype
    for name, value in zip(names.FINAL_NORM.values(), (torch.ones(spec.width), torch.zeros(spec.width)), strict=True):
        mapped.setdefault(name, value.to(dtype))
    return mapped


def _resize_positions(positions: Tensor, spec: VisionEncoderSpec) -> Tensor:
    """Positions [1, 1 + g * g, D] for the grid of `spec`, as in the published code.

    They are interpolated bicubically without aligned corners. The class token stays.
    """
    old, new = math.isqrt(positions.shape[1] - 1), spec.image_size // spec.patch_size
    if positions.shape[1] != 1 + old * old:
        raise CheckpointError(f"pos_embed must have a class token and a square of positions, got {positions.shape[1]}")
    if old == new:
        return positions
    patches = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = interpolate(patches, size=(new, new), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    # As in the published code, the result is fp32 for any dtype of the file.
    return torch.cat([positions[:, :1].float(), patches], dim=1)


def _map_checkpoint(
    state: dict[str, Tensor], config: dict[str, Any], file: Path, report: KeyReport
) -> tuple[int, dict[str, Tensor]]:
    """The LoRA rank, and the projector, the LoRA and an optional final norm by the names of this package."""
    source, mapped = str(file), {}
    for key, value in state.items():
        name = names.PROJECTOR.get(key) or names.lora_name(key) or names.FINAL_NORM.get(key)
        if name in mapped:
            raise CheckpointError(f"{file}: {key} is a duplicate in another spelling")
        if name:
            check_finite(key, value, source)
            mapped[name] = value
            report.take(source, key, name)
        elif key.endswith("rotary_emb.inv_freq"):
            report.drop(source, key, "a buffer, recomputed")
        else:
            raise CheckpointError(f"{file}: unexpected key {key}")
    for key, name in names.PROJECTOR.items():
        if name not in mapped:
            raise CheckpointError(f"{file} is not a published MiniGPT-v2 checkpoint: it has no {key}")
    ranks = {value.shape[0] for name, value in mapped.items() if ".lora_A." in name}
    if not ranks:
        raise CheckpointError(f"{file} has no LoRA; without it the language model is the original LLaMA-2")
    if len(ranks) > 1:
        raise CheckpointError(f"{file}: LoRA with several ranks: {sorted(ranks)}")
    rank, stated = ranks.pop(), _number(config, "lora_r")
    if stated not in (None, rank):
        raise CheckpointError(f"{file}: the LoRA has rank {rank}, but its config says {stated}")
    expected, found = config.get("lora_target_modules") or LoraConfig().target_modules, _targets(mapped)
    if not isinstance(expected, list) or not all(isinstance(name, str) for name in expected):
        raise CheckpointError(f"{file}: lora_target_modules in its config must be a list of names")
    missing = sorted(set(expected) - set(found))
    if missing:
        raise CheckpointError(f"{file}: incomplete LoRA: found {', '.join(found)}, missing {', '.join(missing)}")
    return rank, mapped


def _targets(trained: dict[str, Tensor]) -> list[str]:
    """The names of the modules with adapters, as in `LoraConfig`."""
    found = {name.split(".")[-3] for name in trained if ".lora_A." in name}
    return sorted(found) or list(LoraConfig().target_modules)


def _alpha(
    options: ConversionOptions, config: dict[str, Any], vision: str | None, language: LanguageModelSpec, file: str
) -> int:
    alpha = options.lora_alpha or _number(config, "lora_alpha")
    if alpha:
        return alpha
    if vision == PUBLISHED_SPECS[0] and _spec_name(LANGUAGE_MODELS, language) in PUBLISHED_SPECS[1]:
        return LoraConfig().alpha
    raise ConfigError(f"{file} does not contain the scale of its LoRA; set --lora-alpha (16 for the published ones)")


def to_published(export: Path, output: Path, *, newer_spelling: bool = False, overwrite: bool = False) -> KeyReport:
    """Write a `.pth` file for the published loader and demo, with the projector and the LoRA bit for bit.

    `newer_spelling` names the LoRA keys as PEFT >= 0.3 does. Raises `CheckpointError` for an export that the published
    format cannot contain (other trained weights, no LoRA).
    """
    refuse_existing(output, overwrite, export)
    info = load_info(export)
    tensors = open_weights(info)
    report = KeyReport()
    state: dict[str, Tensor] = {}
    for name, tensor in progress_bar(tensors.items(), desc=output.name, unit="tensor"):
        key = names.published_name(name)
        if key is None:
            raise CheckpointError(
                f"{export}: {name} was trained or has no base folder; published files contain projector and LoRA only"
            )
        if newer_spelling:
            key = key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        state[key] = tensor.read()
        report.take(str(export), name, key)
    lora, sizes = info.model.lora, info.sizes
    if not lora.r or sizes.vision_encoder.family != "eva":
        raise CheckpointError(
            f"{export}: published files contain a LoRA for EVA's ViT, got r={lora.r} and {sizes.vision_encoder.family}"
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
    """Write `document` with `torch.save`, atomically."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        torch.save(document, temporary)
        finish_file(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
