"""An export: a finished stage's weights and config, small, loadable on a laptop. And base weights from their folders.

`<export>/weights.safetensors` holds, by canonical name, everything that does not come from a base folder: what was
trained here or in an earlier stage. `config.json` says which backbones, which bases and the lineage of stages; the
tokenizer lies beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.files import sha256_of, sync_file, sync_folder, write_atomically
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.model.weights import (
    Assign,
    ShapeOf,
    init_value,
    load_weights,
    named_canonical,
    part_of,
    plain_shape,
    read_safetensors,
)
from minigptv2.tokenizer import Tokenizer, find_tokenizer_file, load_tokenizer

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "weights.safetensors", "config.json"
VISION_FILE = "vision_encoder.safetensors"
"""In a model folder of ours, the vision encoder's weights under this model's names."""


@dataclass(frozen=True)
class ExportInfo:
    """What an export says of itself. `lineage` lists the stages, oldest first, this one last."""

    model: ModelConfig
    weights_sha256: str
    lineage: tuple[dict[str, Any], ...]
    folder: Path

    @property
    def title(self) -> str:
        """Stage, steps and hash, for logs."""
        last = self.lineage[-1]
        return f"{last['stage']} ({self.folder}, {last['steps']} steps, weights {self.weights_sha256[:12]})"


def load_info(folder: str | Path) -> ExportInfo:
    """The config of an export. Raises `CheckpointError` naming what is missing or damaged."""
    folder = Path(folder)
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"no export in {folder}: {CONFIG_FILE} is missing. A finished stage writes <run_dir>/export."
        )
    try:
        document = json.loads(file.read_bytes())
        if document["format"] != FORMAT:
            raise CheckpointError(f"{file}: format {document['format']}, this version reads {FORMAT}")
        model = document["model"]
        config = ModelConfig(**{**model, "lora": LoraConfig(**model["lora"])})
        return ExportInfo(config, document["weights_sha256"], tuple(document["lineage"]), folder)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not an export's config: {type(error).__name__}: {error}") from error


def save_export(folder: Path, tensors: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer,
                lineage: list[dict[str, Any]]) -> ExportInfo:  # fmt: skip
    """Write an export whole or not at all: into a temporary folder that is renamed into place."""
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, str(temporary / WEIGHTS_FILE))
    sync_file(temporary / WEIGHTS_FILE)
    shutil.copyfile(tokenizer.path, temporary / tokenizer.path.name)
    sha256 = sha256_of(temporary / WEIGHTS_FILE)
    portable = asdict(config) | {"tokenizer": None}
    document = {"format": FORMAT, "model": portable, "weights_sha256": sha256, "lineage": lineage}
    write_atomically(temporary / CONFIG_FILE, json.dumps(document, indent=1).encode())
    sync_folder(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    sync_folder(folder.parent)
    return load_info(folder)


def load_export(folder: str | Path) -> tuple[MiniGPTv2, Tokenizer, ExportInfo]:
    """The whole model of an export on this process, fp32, in evaluation mode, with its tokenizer.

    Raises `CheckpointError` for a damaged file, a tensor without a place, or a parameter without a tensor.
    """
    info = load_info(folder)
    weights_file = info.folder / WEIGHTS_FILE
    if not weights_file.is_file() or sha256_of(weights_file) != info.weights_sha256:
        raise CheckpointError(f"{weights_file}: missing, or not the file its {CONFIG_FILE} was written with")
    tokenizer = load_tokenizer(info.folder)
    model = build_model(info.model, tokenizer.vocab_size)
    sources = fill_weights(model, info.model, _assign_plain, seed=None, parent=info)
    assert set(sources.values()), "an export without weights"
    return model.eval(), tokenizer, info


def tokenizer_of(config: ModelConfig) -> Tokenizer:
    """The tokenizer that a model config asks for."""
    path = config.tokenizer or config.language_weights
    if path is None:
        raise ConfigError("set model.tokenizer: there is no model.language_weights folder to take it from")
    return load_tokenizer(find_tokenizer_file(path))


def fill_weights(
    model: nn.Module, config: ModelConfig, assign: Assign, *, seed: int | None, parent: ExportInfo | None,
    shape_of: ShapeOf = plain_shape,
) -> dict[str, str]:  # fmt: skip
    """Fill every parameter: base folders first, then the parent export, then random from `seed`.

    Returns, per part, where its weights come from. `seed` None admits no random weights: `CheckpointError` instead.
    """
    filled: dict[str, str] = {}
    for source, readers, shapes in _sources(config, parent):
        load_weights(model, readers, assign, source=source, shape_of=shape_of, shapes=shapes)
        filled.update(dict.fromkeys(readers, source))
    parameters = named_canonical(model)
    missing = [name for name in parameters if name not in filled]
    if missing and seed is None:
        raise CheckpointError(
            f"{parent.folder if parent else 'export'}: no weights for {len(missing)}, first {missing[0]}"
        )
    for name in missing:
        parameter = parameters[name]
        assign(parameter, partial(init_value, name, shape_of(parameter), seed or 0))
        filled[name] = f"random, seed {seed}"
    by_part: dict[str, list[str]] = {}
    for name in parameters:
        sources = by_part.setdefault(part_of(name), [])
        if filled[name] not in sources:
            sources.append(filled[name])
    return {part: " + ".join(sources) for part, sources in by_part.items()}


def parts_to_export(model: nn.Module, config: ModelConfig) -> list[str]:
    """Canonical names of what an export must hold: everything trained or without a base folder."""
    based = {"vision_encoder": config.vision_weights, "language_model": config.language_weights}
    return [
        name for name in named_canonical(model) if part_of(name) in config.trainable or not based.get(part_of(name))
    ]


def base_files(config: ModelConfig) -> dict[str, int]:
    """Base weight files and their bytes: part of what must be equal on resume."""
    return {file.name: file.stat().st_size for _, files, _ in _bases(config) for file in files}


def _assign_plain(parameter: nn.Parameter, value: Callable[[], Tensor]) -> None:
    """`Assign` for a parameter that is whole on this process."""
    parameter.data.copy_(value())


def _bases(config: ModelConfig) -> list[tuple[str, list[Path], str]]:
    """(folder, files, prefix of the names inside) of each base folder."""
    bases = []
    if config.vision_weights:
        file = Path(config.vision_weights) / VISION_FILE
        if not file.is_file():
            raise ConfigError(f"model.vision_weights={config.vision_weights}: no {VISION_FILE} there")
        bases.append((config.vision_weights, [file], ""))
    if config.language_weights:
        files = sorted(Path(config.language_weights).glob("*.safetensors"))
        if not files:
            raise ConfigError(f"model.language_weights={config.language_weights}: no *.safetensors there")
        bases.append((config.language_weights, files, "language_model."))
    return bases


def _sources(
    config: ModelConfig, parent: ExportInfo | None
) -> list[tuple[str, dict[str, Callable[[], Tensor]], dict[str, tuple[int, ...]]]]:
    found = []
    for folder, files, prefix in _bases(config):
        readers, shapes = read_safetensors(files)
        names = [name for name in readers if not name.endswith("rotary_emb.inv_freq")]
        found.append((folder, {prefix + n: readers[n] for n in names}, {prefix + n: shapes[n] for n in names}))
    if parent is not None:
        readers, shapes = read_safetensors([parent.folder / WEIGHTS_FILE])
        found.append((str(parent.folder), readers, shapes))
    return found


def save_untrained(folder: Path, config: ModelConfig, seed: int) -> ExportInfo:
    """Export the model a first stage starts from, for comparison with what training made of it."""
    tokenizer = tokenizer_of(config)
    model = build_model(config, tokenizer.vocab_size)
    fill_weights(model, config, _assign_plain, seed=seed, parent=None)
    named = named_canonical(model)
    tensors = {name: named[name].detach().clone() for name in parts_to_export(model, config)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_export(folder, tensors, config, tokenizer, [{"stage": "untrained", "steps": 0, "seed": seed}])
