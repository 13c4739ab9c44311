"""Writes and reads the paths of base weights in the config of an export. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigptv2.errors import CheckpointError
from minigptv2.model.backbones import FOLDER_CONFIG, LANGUAGE_MODELS, VISION_ENCODERS, read_folder_config

PATHS = ("vision_encoder", "vision_weights", "language_model", "language_weights")
"""Fields of `ModelConfig` that may be folders."""
BASES = ("vision_weights", "language_weights")
"""Those of the base weights."""
INSIDE = (".", "language_model")
"""Paths inside a model folder: the vision encoder's weights and the language model's Hugging Face folder."""


def resolved(key: str, value: str | None, folder: Path) -> str | None:
    """Return a path of an export's config, relative to `folder` unless absolute. Names of specs are kept.

    Base weights may lie anywhere. They are read like any foreign file: regular files, and never code.
    """
    if value is None or _is_spec_name(key, value):
        return value
    return str(folder / value)  # an absolute path stays what it is


def portable(key: str, value: str | None, inside: bool) -> str | None:
    """Return the path to write: absolute, except names of specs and paths inside the new folder."""
    if value is None or _is_spec_name(key, value) or (inside and value in INSIDE):
        return value
    return str(Path(value).resolve())


def bases_of(export: Path) -> dict[str, str]:
    """Return the base weights of an export, by key of `ModelConfig`. Empty if there is no export in the folder.

    Raises `CheckpointError` for a damaged config.
    """
    file = export / FOLDER_CONFIG
    if not file.is_file():
        return {}
    model = read_folder_config(file).get("model")
    paths = {key: model.get(key) for key in BASES} if isinstance(model, dict) else {}
    if not all(path is None or isinstance(path, str) for path in paths.values()):
        raise CheckpointError(f"{file}: not an export's config: {' and '.join(BASES)} must be paths")
    return {key: str(resolved(key, path, export)) for key, path in paths.items() if path is not None}


def _is_spec_name(key: str, value: str) -> bool:
    names: dict[str, Any] = {"vision_encoder": VISION_ENCODERS, "language_model": LANGUAGE_MODELS}
    return value in names.get(key, ())
