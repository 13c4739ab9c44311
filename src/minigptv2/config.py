"""Loads YAML files and `key=value` overrides into plain dataclasses and records the source of each value.

Later layers override earlier ones: dataclass defaults, files named by `extends:`, the file, `key=value`. An unknown key
raises an error that names the nearest known key. This is the only module that imports OmegaConf. It knows no particular
config: every component defines its own dataclass, whose fields declare with `setting` what a resumed run may change.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigptv2.errors import ConfigError, nearest
from minigptv2.secrets import looks_secret
from minigptv2.shipped import find

__all__ = [
    "MISSING",
    "Loaded",
    "Resume",
    "fields_with",
    "flat_values",
    "load_config",
    "render_value",
    "render_yaml",
    "resume_rule",
    "setting",
]

T = TypeVar("T")
EXTENDS = "extends"
"""The YAML key that names the file a config builds on, relative to itself."""
_MAX_EXTENDS = 8


class Resume(Enum):
    """What a different value of a config field means when a run resumes."""

    EQUAL = "the run is refused"
    CONTENT = "a path may change, and the hash of its content is compared"
    FREE = "the change is logged"
    MACHINE = "as FREE, and reset to the default when an export is loaded, possibly on another machine"


def setting(default: Any = MISSING, *, resume: Resume) -> Any:
    """A field of a config dataclass with its resume rule.

    `default` may be a list or a dict, which is copied for each object, or a dataclass, which is then built. A rule on a
    nested dataclass, or on a dict of them, covers all its leaves.
    """
    metadata = {"resume": resume}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=partial(copy.deepcopy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def resume_rule(schema: type, key: str) -> Resume | None:
    """The resume rule of a dotted key of the dataclass `schema`. None if the key or its rule does not exist."""
    name, _, rest = key.partition(".")
    found = next((one for one in fields(schema) if one.name == name), None)
    if found is None:
        return None
    rule: Resume | None = found.metadata.get("resume")
    hint = get_type_hints(schema)[name]
    return resume_rule(hint, rest) if rule is None and rest and _is_dataclass_type(hint) else rule


def fields_with(schema: type, rule: Resume) -> list[str]:
    """Names of the fields of the dataclass `schema` whose own rule is `rule`. Nested fields are not searched."""
    return [one.name for one in fields(schema) if one.metadata.get("resume") is rule]


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A resolved config (`value`, a plain dataclass) and, per dotted key, the layer that set it."""

    value: T
    origins: dict[str, str]
    flat: dict[str, Any]


def load_config(schema: type[T], file: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Loaded[T]:
    """Merge `file`, the files it extends and `key=value` overrides into an object of the dataclass `schema`.

    Raises `ConfigError` for a missing file, invalid YAML, an unknown key (with the nearest known key), a value of the
    wrong type, a missing mandatory value, and an `extends:` chain that loops.
    """
    merged = OmegaConf.structured(schema)
    origins = dict.fromkeys(_flatten(merged), "default")
    layers = [*(_file_layers(Path(file)) if file else []), *(_override_layer(word) for word in overrides)]
    for origin, layer in layers:
        _check_keys(schema, layer, origin)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{origin}: {_first_line(error)}") from error
        origins.update(dict.fromkeys(_flatten(layer), origin))
    try:
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file or 'config'}: {_first_line(error)}") from error
    flat = _flatten(OmegaConf.create(OmegaConf.to_container(merged, resolve=True)))
    return Loaded(value, {key: origins.get(key, "default") for key in flat}, flat)  # type: ignore[arg-type]


def flat_values(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a plain container as a dict from dotted key to leaf value, as in `Loaded.flat`."""
    return _flatten(OmegaConf.create(value), prefix)


def render_yaml(value: Any) -> str:
    """Return a dataclass or plain container as YAML text."""
    config = OmegaConf.create(value) if isinstance(value, (dict, list)) else OmegaConf.structured(value)
    return OmegaConf.to_yaml(config)


def render_value(value: Any) -> str:
    """Return a leaf value as YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ", ".join(render_value(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _file_layers(file: Path) -> list[tuple[str, DictConfig]]:
    layers: list[tuple[str, DictConfig]] = []
    seen: list[Path] = []
    current: Path | None = find(file)
    while current is not None:
        if current.resolve() in seen or len(seen) >= _MAX_EXTENDS:
            raise ConfigError(f"{file}: the extends: chain loops or has more than {_MAX_EXTENDS} files, at {current}")
        seen.append(current.resolve())
        layer = _load_yaml(current)
        parent = layer.pop(EXTENDS, None)
        layers.insert(0, (str(current), layer))
        current = current.parent / parent if parent else None
    return layers


def _load_yaml(file: Path) -> DictConfig:
    if not file.is_file():
        raise ConfigError(f"config file not found: {file}")
    try:
        layer = OmegaConf.load(file)
    except Exception as error:  # YAML errors have many classes, and one message fits all of them
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{file}: expected a mapping at the top level, got {type(layer).__name__}")
    return layer


def _override_layer(word: str) -> tuple[str, DictConfig]:
    key, equals, _ = word.partition("=")
    if looks_secret(word):
        raise ConfigError(
            f"{key}: the value looks like a secret, and all users of this machine can see a command line. "
            f"Put it into an environment variable with a name like MY_TOKEN and write {key}='${{oc.env:MY_TOKEN}}'"
        )
    if not equals or not key:
        raise ConfigError(f"'{word}' is not of the form key=value")
    try:
        return f"command line ({word})", OmegaConf.from_dotlist([word])
    except Exception as error:  # the value is YAML
        raise ConfigError(f"'{word}': the value is not valid YAML: {error}") from error


def _check_keys(schema: type, layer: DictConfig, origin: str, prefix: str = "") -> None:
    """Raise `ConfigError` if a key of `layer` is not a field of the dataclass `schema`. Nested keys are checked too."""
    hints = get_type_hints(schema)
    for key in map(str, layer):
        if key not in hints:
            leaves = _leaves(schema)
            same_name = [name for name in leaves if name.split(".")[-1] == key]
            hint = (
                f"; did you mean '{prefix}{same_name[0]}'?"
                if same_name
                else nearest(f"{prefix}{key}", [f"{prefix}{name}" for name in leaves])
            )
            raise ConfigError(f"{origin}: unknown key '{prefix}{key}'{hint}")
        child = layer._get_node(key)
        if not isinstance(child, DictConfig) or child._is_none() or child._is_interpolation():
            continue
        nested = [part for part in (hints[key], *get_args(hints[key])) if _is_dataclass_type(part)]
        for part in nested:
            if get_origin(hints[key]) is not dict:
                _check_keys(part, child, origin, f"{prefix}{key}.")
                continue
            for name in map(str, child):
                if OmegaConf.is_dict(child[name]):
                    _check_keys(part, child[name], origin, f"{prefix}{key}.{name}.")


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _leaves(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a dataclass, nested fields included. Fields nearer the top come first."""
    hints = get_type_hints(schema)
    here = [f"{prefix}{name}" for name in hints]
    return here + [
        leaf for name, hint in hints.items() if _is_dataclass_type(hint) for leaf in _leaves(hint, f"{prefix}{name}.")
    ]


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a dict from dotted key to leaf value. Lists and empty dicts are leaves."""
    flat: dict[str, Any] = {}
    for key in list(config):
        missing = OmegaConf.is_missing(config, key)
        value = None if missing or OmegaConf.is_interpolation(config, key) else config[key]
        if isinstance(value, DictConfig) and len(value):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return flat


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    key = next((line.strip() for line in lines if "full_key" in line), "")
    return f"{lines[0]} ({key})" if key else lines[0]
