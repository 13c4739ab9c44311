"""Loads base weights (pretrained, from folders) and fills every parameter of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.foreign_files import FileIdentity, open_regular, safetensors_in
from minigptv2.model.backbones import FOLDER_CONFIG, read_folder_config
from minigptv2.model.config import ModelConfig
from minigptv2.model.weights import (
    Assign,
    ShapeOf,
    Tensors,
    init_value,
    load_weights,
    named_canonical,
    part_of,
    plain_shape,
    tensors_in,
)

VISION_FILE = "vision_encoder.safetensors"
"""The vision encoder's weights in a minigptv2 model folder, under the names of `MiniGPTv2`."""
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@dataclass(frozen=True)
class Base:
    """A folder with the base weights of one part. `files` identify the content of the tensors, if it is known."""

    part: str
    folder: Path
    tensors: Tensors
    files: tuple[FileIdentity, ...] = ()


def open_bases(config: ModelConfig) -> list[Base]:
    """Open the base folders that a config names, without reading tensors. Raises `ConfigError` if one is missing."""
    bases = []
    if config.vision_weights:
        folder = Path(config.vision_weights)
        if not (folder / VISION_FILE).is_file():
            raise ConfigError(f"model.vision_weights={folder}: {VISION_FILE} not found. `minigptv2 convert` writes it.")
        bases.append(Base("vision_encoder", folder, *_open_identified([folder / VISION_FILE], folder)))
    if config.language_weights:
        bases.append(open_language_base(Path(config.language_weights)))
    return bases


def open_language_base(folder: Path) -> Base:
    """Return a Hugging Face LLaMA folder with tensors under the names of `MiniGPTv2`, with a separate head."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"model.language_weights={folder}: no *.safetensors file found")
    found, identities = _open_identified(files, folder)
    tensors = {
        f"language_model.{name}": tensor
        for name, tensor in found.items()
        if not name.endswith("rotary_emb.inv_freq")  # a buffer in old files
    }
    if (folder / FOLDER_CONFIG).is_file():  # it says whether the head is a tensor of its own
        with open_regular(folder / FOLDER_CONFIG, CheckpointError, folder=folder) as stream:
            identities += (FileIdentity.of(folder / FOLDER_CONFIG, stream),)
    return Base("language_model", folder, untie(tensors, folder), identities)


def open_llama(folder: Path) -> Tensors:
    """Return the tensors of `open_language_base`."""
    return open_language_base(folder).tensors


def _open_identified(files: list[Path], folder: Path) -> tuple[Tensors, tuple[FileIdentity, ...]]:
    """Return all tensors in `files`, unread, with the identities of the very files that were opened."""
    tensors: Tensors = {}
    identities = []
    for file in files:
        with open_regular(file, CheckpointError, folder=folder) as stream:
            identities.append(FileIdentity.of(file, stream))
            tensors |= tensors_in(safetensors_in(stream, file, CheckpointError))
    return tensors, tuple(identities)


def untie(tensors: Tensors, folder: Path) -> Tensors:
    """Return the tensors with a copy of the embeddings as the head, if the folder's config ties the two."""
    config = folder / FOLDER_CONFIG
    tied = config.is_file() and read_folder_config(config).get("tie_word_embeddings")
    return tensors | {HEAD: tensors[EMBEDDINGS]} if tied and HEAD not in tensors and EMBEDDINGS in tensors else tensors


def check_base_hashes(expected: dict[str, str], found: dict[str, str], who: str, bases: list[Base]) -> None:
    """Raise `CheckpointError`, with both hashes, if `who` was trained on other base weights than those found."""
    folders = {base.part: base.folder for base in bases}
    for part, sha256 in expected.items():
        if part in found and found[part] != sha256:
            got = f"{folders[part]} has {found[part][:16]}"
            raise CheckpointError(f"{who} was trained on another {part}: expected sha256 {sha256[:16]}, {got}")


def fill_weights(
    model: nn.Module,
    bases: list[Base],
    parent: tuple[str, Tensors] | None,
    assign: Assign,
    *,
    seed: int | None,
    shape_of: ShapeOf = plain_shape,
) -> dict[str, str]:
    """Fill every parameter from the base folders, then the parent (its name and tensors), then randomly from `seed`.

    Return where the weights of each part come from. Raises `CheckpointError` if a base folder lacks a parameter of its
    part, or if `seed` is None and a parameter has no weights.
    """
    filled: dict[str, str] = {}
    sources = [(str(base.folder), base.tensors) for base in bases] + ([parent] if parent else [])
    for source, tensors in sources:
        load_weights(model, tensors, assign, source=source, shape_of=shape_of)
        filled.update(dict.fromkeys(tensors, source))
    parameters = named_canonical(model)
    missing = [name for name in parameters if name not in filled]
    for base in bases:
        gaps = [name for name in missing if part_of(name) == base.part]
        if gaps:
            raise CheckpointError(
                f"{base.folder}: no weights for {len(gaps)} parameters of the {base.part}, first {gaps[0]}. "
                "Check that all files are there."
            )
    if missing and seed is None:
        where = parent[0] if parent else "the model"
        raise CheckpointError(f"{where}: no weights for {len(missing)} parameters, first {missing[0]}")
    for name in missing:
        parameter = parameters[name]
        assign(parameter, partial(init_value, name, shape_of(parameter), seed or 0))
        filled[name] = f"random, seed {seed}"
    by_part: dict[str, list[str]] = {}
    for name in parameters:
        places = by_part.setdefault(part_of(name), [])
        if filled[name] not in places:
            places.append(filled[name])
    return {part: " + ".join(places) for part, places in by_part.items()}


def names_to_export(model: nn.Module, config: ModelConfig, parent: Tensors) -> list[str]:
    """Return the canonical names that an export must hold: trained, without a base folder, or from the parent."""
    based = {"vision_encoder": config.vision_weights, "language_model": config.language_weights}
    return [
        name
        for name in named_canonical(model)
        if part_of(name) in config.trainable or not based.get(part_of(name)) or name in parent
    ]
