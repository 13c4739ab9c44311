"""Reads and writes exports: the weights and config of a finished stage, or a model folder with base weights only.

`<export>/weights.safetensors` holds, by canonical name, everything that does not come from a base folder: what was
trained in this or an earlier stage. `config.json` names the backbones with their sizes, the bases with their hashes,
and the lineage of stages. The tokenizer is beside it. Paths in the config are absolute or inside the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigptv2.config import Resume, config_of_plain, fields_with
from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import disguise_in, finish_file, remove_or_report, remove_tree, sha256_of, sync_folder
from minigptv2.foreign_files import open_regular, read_json, safetensors_in
from minigptv2.model.backbones import FOLDER_CONFIG, LANGUAGE_MODELS, VISION_ENCODERS, Sizes
from minigptv2.model.base_hashes import HashedBase, hash_bases
from minigptv2.model.bases import Base, check_base_hashes, fill_weights, names_to_export, open_bases
from minigptv2.model.build import build_model, sizes_of, without_values
from minigptv2.model.config import ModelConfig
from minigptv2.model.export_paths import PATHS, portable, resolved
from minigptv2.model.memory_check import check_memory
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import (
    Tensors,
    check_finite,
    named_canonical,
    part_of,
    read_safetensors,
    stored_dtype,
    tensors_in,
)
from minigptv2.redacted_files import write_json
from minigptv2.tokenizer import Tokenizer, find_tokenizer_file, load_tokenizer

FORMAT = 1
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class LineageEntry:
    """One stage in the history of an export. `details` are what the writer recorded, such as seed, recipe, config."""

    stage: str
    steps: int
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the entry as plain values."""
        return {"stage": self.stage, "steps": self.steps, **self.details}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LineageEntry:
        """Return the entry that `as_json` was made of. Raises `KeyError` or `ValueError` for another document."""
        if not isinstance(document, dict):
            raise ValueError(f"a stage of the lineage must be an object, got {type(document).__name__}")
        stage, steps = document["stage"], document["steps"]
        if not isinstance(stage, str) or type(steps) is not int or steps < 0:
            raise ValueError("a stage of the lineage needs a name and a number of steps")
        return cls(stage, steps, {key: value for key, value in document.items() if key not in ("stage", "steps")})


@dataclass(frozen=True)
class ExportInfo:
    """The config of an export, with resolved paths. `lineage` lists the stages, oldest first.

    `base_sha256` holds the hash of each base part it was trained on. `weights_sha256` is None for a model folder that
    holds base weights only, for training a first stage. `tokenizer_sha256` is None in exports of version 0.1.
    """

    model: ModelConfig
    sizes: Sizes
    weights_sha256: str | None
    base_sha256: dict[str, str]
    lineage: tuple[LineageEntry, ...]
    folder: Path
    tokenizer_sha256: str | None = None

    @property
    def title(self) -> str:
        """Return stage, folder, steps and hash, for logs."""
        last = self.lineage[-1] if self.lineage else LineageEntry("unknown", 0)
        return f"{last.stage} ({self.folder}, {last.steps} steps, weights {(self.weights_sha256 or 'none')[:12]})"

    @property
    def tensors(self) -> Tensors:
        """Return the tensors of the export itself, unread."""
        return read_safetensors([self.folder / WEIGHTS_FILE], self.folder)


def load_info(folder: str | Path) -> ExportInfo:
    """Return the config of an export. Raises `CheckpointError` naming what is missing or damaged."""
    folder = Path(folder)
    file = folder / FOLDER_CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"no export in {folder}: {FOLDER_CONFIG} is missing. A finished stage writes <run_dir>/export."
        )
    document = read_json(file, CheckpointError, folder=folder, kind="the config of an export")
    try:
        if "format" not in document or "lineage" not in document:
            raise CheckpointError(
                f"{file}: not an export's config. `minigptv2 convert` writes one from published files."
            )
        if document["format"] != FORMAT:
            raise CheckpointError(f"{file}: format {document['format']} is not supported; this version reads {FORMAT}")
        model, sizes = document["model"], Sizes.from_json(document["sizes"])
        model |= {key: resolved(key, model[key], folder) for key in PATHS}
        model |= {key: getattr(ModelConfig(), key) for key in fields_with(ModelConfig, Resume.MACHINE)}
        info = ExportInfo(
            config_of_plain(ModelConfig, model),
            sizes,
            _hash_or_none(document["weights_sha256"]),
            {str(part): str(sha256) for part, sha256 in document["base_sha256"].items()},
            _lineage(document["lineage"]),
            folder,
            _hash_or_none(document.get("tokenizer_sha256")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, ConfigError) as error:
        raise CheckpointError(f"{file}: not an export's config: {type(error).__name__}: {error}") from error
    for name, table, stated in (
        (info.model.vision_encoder, VISION_ENCODERS, sizes.vision_encoder),
        (info.model.language_model, LANGUAGE_MODELS, sizes.language_model),
    ):
        if name in table and table[name] != stated:
            raise CheckpointError(f"{file}: {name} was {stated} when this was written, now it is {table[name]}")
    return info


def _lineage(entries: Any) -> tuple[LineageEntry, ...]:
    if not isinstance(entries, list):
        raise ValueError("lineage must be a list of stages")
    return tuple(LineageEntry.from_json(entry) for entry in entries)


def _hash_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a hash must be a text, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class ExportContent:
    """What `save_export` writes: the weights by canonical name (None: base weights only) and all that goes with them.

    `base_sha256` holds the hash of each base part, `lineage` the stages, oldest first. `sizes` are those of the model
    where they differ from the specs of `config`.
    """

    tensors: dict[str, Tensor] | None
    config: ModelConfig
    tokenizer: Tokenizer
    lineage: list[LineageEntry]
    base_sha256: dict[str, str]
    sizes: Sizes | None = None


def save_export(
    folder: Path, content: ExportContent, *, more: Callable[[Path], None] | None = None, inside: bool = False
) -> ExportInfo:
    """Write an export atomically, into a temporary folder that is renamed; return its config.

    `more` writes further files into the folder. With `inside`, the `INSIDE` paths of the config refer to the new
    folder.
    """
    from safetensors.torch import save_file

    with new_folder(folder) as temporary:
        sha256 = None
        if content.tensors is not None:
            tensors = {name: value.contiguous() for name, value in content.tensors.items()}
            save_file(tensors, str(temporary / WEIGHTS_FILE))
            finish_file(temporary / WEIGHTS_FILE)
            sha256 = sha256_of(temporary / WEIGHTS_FILE)
        (temporary / content.tokenizer.path.name).write_bytes(content.tokenizer.data)
        if more is not None:
            more(temporary)
        document = {
            "format": FORMAT,
            "model": asdict(content.config)
            | {"tokenizer": None}
            | {key: portable(key, getattr(content.config, key), inside) for key in PATHS},
            "sizes": (content.sizes or sizes_of(content.config)).as_json(),
            "weights_sha256": sha256,
            "base_sha256": content.base_sha256,
            "tokenizer_sha256": content.tokenizer.sha256,
            "lineage": [entry.as_json() for entry in content.lineage],
        }
        write_json(temporary / FOLDER_CONFIG, document)
    return load_info(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block succeeds and is removed when it fails.

    If `folder` is a link, its target is replaced and the link stays.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (folder.with_name(f".{folder.name}.{what}") for what in ("tmp", "old"))
    remove_tree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
    except BaseException:
        remove_or_report(temporary)
        raise
    remove_tree(replaced)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    sync_folder(folder.parent)
    remove_or_report(replaced)


def load_export(
    folder: str | Path,
    *,
    vision_weights: str | None = None,
    language_weights: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[MiniGPTv2, Tokenizer, ExportInfo]:
    """Load the whole model of an export on this process, in evaluation mode, with its tokenizer and config.

    `vision_weights` and `language_weights` override the paths of its bases. `dtype` defaults to that of the language
    model's files. Raises `CheckpointError` for a damaged file, bases that it was not trained on, an unexpected tensor,
    or a parameter without a tensor, and `ConfigError`, before the bases are read, if the model does not fit in memory.
    """
    info = with_bases(load_info(folder), vision_weights, language_weights)
    tensors = open_weights(info)
    bases = open_bases(info.model)
    dtype = dtype or _own_dtype(tensors, bases)
    tokenizer = tokenizer_in(info)
    build = partial(build_model, info.model, tokenizer.vocab_size, sizes=info.sizes, device=torch.device(device))
    parent = (str(info.folder), tensors)
    # The files must fill a model of the stated sizes, before memory is taken for it.
    unfilled = build(torch.device("meta"), dtype=dtype)
    fill_weights(unfilled, bases, parent, lambda parameter, value: None, seed=None)
    check_memory(unfilled, info.folder, dtype, torch.device(device))
    hashed = [HashedBase(base) for base in bases]
    _check_hashes(info, {one.base.part: one.known for one in hashed if one.known}, bases)
    model = build(without_values(torch.device(device), dtype), dtype=dtype)
    fill_weights(model, [one.base for one in hashed], parent, assign_plain, seed=None)
    _check_hashes(info, {one.base.part: one.sha256() for one in hashed}, bases)
    model.to(device).restore_float32_buffers()
    return model.eval().requires_grad_(False), tokenizer, info


def _check_hashes(info: ExportInfo, found: dict[str, str], bases: list[Base]) -> None:
    check_base_hashes(info.base_sha256, found, str(info.folder), bases)


def _own_dtype(tensors: Tensors, bases: list[Base]) -> torch.dtype:
    """Return the dtype of the language model in the base folder, else in the export itself."""
    stored = tensors | {name: tensor for base in bases for name, tensor in base.tensors.items()}
    return stored_dtype({name: tensor for name, tensor in stored.items() if part_of(name) == "language_model"})


def with_bases(info: ExportInfo, vision_weights: str | None, language_weights: str | None) -> ExportInfo:
    """Return `info` with the given folders for its bases."""
    model = replace(
        info.model,
        vision_weights=vision_weights or info.model.vision_weights,
        language_weights=language_weights or info.model.language_weights,
    )
    return replace(info, model=model)


def open_weights(info: ExportInfo) -> Tensors:
    """Return the tensors of an export, unread, of the very file that was checked.

    Raises `CheckpointError` unless the weights are present, match the hash in the config and are finite.
    """
    if info.weights_sha256 is None:
        raise CheckpointError(
            f"{info.folder} holds base weights only, without projector and LoRA. Train a stage on it, or convert with "
            "--checkpoint."
        )
    file = info.folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; its {FOLDER_CONFIG} describes it")
    with open_regular(file, CheckpointError, folder=info.folder) as stream:
        if disguise := disguise_in(stream, binary=True):
            raise CheckpointError(f"{file} is {disguise}; expected the weights that its {FOLDER_CONFIG} describes")
        if hashlib.file_digest(stream, "sha256").hexdigest() != info.weights_sha256:
            raise CheckpointError(f"{file}: not the file that its {FOLDER_CONFIG} describes")
        tensors = tensors_in(safetensors_in(stream, file, CheckpointError))
    for name, tensor in tensors.items():
        check_finite(name, tensor.read(), str(file))
    return tensors


def tokenizer_in(info: ExportInfo) -> Tokenizer:
    """Return the tokenizer of an export. Raises `CheckpointError` if it is not the one of the export's config."""
    tokenizer = load_tokenizer(info.folder)
    if info.tokenizer_sha256 not in (None, tokenizer.sha256):
        raise CheckpointError(
            f"{tokenizer.path}: the export was made with another tokenizer, whose sha256 is "
            f"{str(info.tokenizer_sha256)[:16]} instead of {tokenizer.sha256[:16]}"
        )
    return tokenizer


def tokenizer_of(config: ModelConfig) -> Tokenizer:
    """Return the tokenizer of a model config. Raises `ConfigError` if the config names none."""
    path = config.tokenizer or config.language_weights
    if path is None:
        raise ConfigError("set model.tokenizer, or model.language_weights to a folder with a tokenizer")
    return load_tokenizer(find_tokenizer_file(path))


def assign_plain(parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
    """Fill a parameter that is not sharded."""
    parameter.data.copy_(value())


def save_untrained(folder: Path, config: ModelConfig, seed: int) -> ExportInfo:
    """Export the model that a first stage starts from, for comparison with trained ones."""
    tokenizer = tokenizer_of(config)
    model = build_model(config, tokenizer.vocab_size)
    bases = open_bases(config)
    fill_weights(model, bases, None, assign_plain, seed=seed)
    named = named_canonical(model)
    tensors = {name: named[name].detach().clone() for name in names_to_export(model, config, {})}
    lineage = [LineageEntry("untrained", 0, {"seed": seed})]
    return save_export(folder, ExportContent(tensors, config, tokenizer, lineage, hash_bases(bases)))
