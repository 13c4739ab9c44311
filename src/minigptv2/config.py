"""Loads YAML files and `key=value` overrides into plain dataclasses and records the source of each value.

Later layers override earlier ones: dataclass defaults, files named by `extends:`, the file, `key=value`. An unknown key
raises an error that names the nearest known key. This is the only module that imports OmegaConf. It knows no particular
config: every component defines its own dataclass, whose fields declare with `setting` what a resumed run may change.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigptv2.config_interpolation import Interpolations
from minigptv2.config_values import MAX_YAML_BYTES, check_finite, check_place, checked, parse_yaml
from minigptv2.errors import ConfigError
from minigptv2.files import disguise_of, home_expanded
from minigptv2.secrets import looks_secret
from minigptv2.shipped import find

__all__ = [
    "MISSING",
    "Loaded",
    "Resume",
    "config_of_plain",
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
_ELSEWHERE = re.compile(r"[/~]|[A-Za-z][A-Za-z0-9+.-]*://|.*\$\{")
"""Paths that are not looked for beside a file: absolute ones, URLs, and those with an interpolation."""


class Resume(Enum):
    """What a different value of a config field means when a run resumes."""

    EQUAL = "the run is refused"
    CONTENT = "a path may change, and the hash of its content is compared"
    FREE = "the change is logged"
    MACHINE = "as FREE, and reset to the default when an export is loaded, possibly on another machine"


def setting(default: Any = MISSING, *, resume: Resume, path: bool = False, environment: bool = False) -> Any:
    """A field of a config dataclass with its resume rule. `path` marks the path of a file or folder that is read.

    `environment` marks a value that may hold `${oc.env:NAME}`: the place of something on this machine. Other values
    never resolve the environment, because they are written to logs and exports, and recipes come from other people.

    `default` may be a list or a dict, which is copied for each object, or a dataclass, which is then built. A rule on a
    nested dataclass, or on a dict of them, covers all its leaves.
    """
    metadata = {"resume": resume, "path": path, "environment": environment}
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
    searched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The places where an input path of a YAML file was looked for without success, by dotted key."""


def load_config(schema: type[T], file: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Loaded[T]:
    """Merge `file`, the files it extends and `key=value` overrides into an object of the dataclass `schema`.

    `~` at the beginning of a value is the home folder. A relative path of an input, set in a YAML file, is looked for
    beside that file, then in the working folder. Raises `ConfigError` for a missing file, invalid YAML, an unknown key
    (with the nearest known key), a value of the wrong type or shape, a number that is not finite, a missing mandatory
    value, and an `extends:` chain that loops.
    """
    merged = OmegaConf.structured(schema)
    origins = dict.fromkeys(_flatten(merged), "default")
    searched: dict[str, list[str]] = {}
    layers = [*(_file_layers(Path(file)) if file else []), *(_override_layer(word) for word in overrides)]
    for layer in layers:
        values = checked(schema, layer.values, layer.origin)
        if layer.folder is not None:
            values = _beside(schema, values, layer.folder, searched)
        with _as_config_error(layer.origin):
            node = OmegaConf.create(values)
            merged = OmegaConf.merge(merged, node)
            changed = _flatten(node)
        origins.update(dict.fromkeys(changed, layer.origin))
        for key in changed if layer.folder is None else ():
            searched.pop(key, None)
    where = str(file or "config")
    _check_interpolations(schema, merged, origins)
    with _as_config_error(where):
        values = _with_home(OmegaConf.to_container(merged, resolve=True), where)
        final = OmegaConf.merge(OmegaConf.structured(schema), values)
        value, flat = OmegaConf.to_object(final), _flatten(OmegaConf.create(values))
    for key, leaf in flat.items():
        check_finite(leaf, origins.get(key, where), key)
        if _names_a_place(schema, key):
            check_place(leaf, origins.get(key, where), key)
    places = {key: tuple(tried) for key, tried in searched.items() if flat.get(key) == tried[-1]}
    return Loaded(value, {key: origins.get(key, "default") for key in flat}, flat, places)  # type: ignore[arg-type]


def _check_interpolations(schema: type, merged: DictConfig, origins: dict[str, str]) -> None:
    """Raise `ConfigError` naming the layer for an interpolation that is not allowed where it stands."""
    found = Interpolations(OmegaConf.to_container(merged, resolve=False))  # type: ignore[arg-type]
    for key in found.keys:
        try:
            found.check(key, environment=_names_a_place(schema, key))
        except ConfigError as error:
            raise ConfigError(f"{origins.get(key, 'config')}: {error}") from error


def _names_a_place(schema: type, key: str) -> bool:
    """Whether the field of the dataclass `schema` with this dotted key is a path or URL (`environment`)."""
    name, _, rest = key.partition(".")
    found = next((one for one in fields(schema) if one.name == name), None)
    if found is None or not rest:
        return bool(found and found.metadata.get("environment"))
    hint = get_type_hints(schema)[name]
    return _is_dataclass_type(hint) and _names_a_place(hint, rest)


def config_of_plain(schema: type[T], values: dict[str, Any]) -> T:
    """An object of the dataclass `schema` from plain values of a foreign file. Nothing in them is resolved.

    Raises `ConfigError` for an interpolation, an unknown key and a value of another type.
    """
    if any("${" in str(leaf) for leaf in _leaves(values)):
        raise ConfigError("an interpolation ${...} where a value is expected")
    for key, value in values.items():
        if _names_a_place(schema, str(key)):
            check_place(value, "config", str(key))
    with _as_config_error("config"):
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))  # type: ignore[return-value]


def _leaves(value: Any) -> Iterator[Any]:
    """The texts, numbers and keys in nested containers."""
    if isinstance(value, dict):
        yield from value
        value = value.values()
    elif not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


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


@dataclass(frozen=True)
class _Layer:
    """Values of one source: a file in `folder`, or a word of the command line (None)."""

    origin: str
    values: dict[str, Any]
    folder: Path | None = None


def _file_layers(file: Path) -> list[_Layer]:
    layers: list[_Layer] = []
    seen: list[Path] = []
    current: Path | None = find(home_expanded(str(file)))
    while current is not None:
        if current.resolve() in seen or len(seen) >= _MAX_EXTENDS:
            raise ConfigError(f"{file}: the extends: chain loops or has more than {_MAX_EXTENDS} files, at {current}")
        seen.append(current.resolve())
        values = _load_yaml(current, extended=bool(layers))
        parent = values.pop(EXTENDS, None)
        layers.insert(0, _Layer(str(current), values, current.parent))
        current = None if parent is None else _extended(parent, current)
    return layers


def _extended(parent: Any, file: Path) -> Path:
    """The file that `extends:` of `file` names: beside it, or in the working folder."""
    if not isinstance(parent, str) or not parent:
        raise ConfigError(f"{file}: {EXTENDS} must be the path of a YAML file, got {parent!r}")
    check_place(parent, str(file), EXTENDS)
    places = [file.parent / home_expanded(parent), find(home_expanded(parent))]
    for place in places:
        if place.is_file():
            return place
    tried = " and ".join(dict.fromkeys(map(str, places)))
    raise ConfigError(f"{file}: {EXTENDS}: {parent}: config file not found; looked for {tried}")


def _load_yaml(file: Path, *, extended: bool) -> dict[str, Any]:
    """The mapping in a YAML file. Errors quote nothing of an `extended` file: it may be any file of this machine."""
    if not file.is_file():
        raise ConfigError(f"config file not found: {file}")
    if file.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{file} has more than {MAX_YAML_BYTES:,} bytes and is no config")
    if file.stat().st_size and (disguise := disguise_of(file, binary=False)):
        raise ConfigError(f"{file} is {disguise}; expected YAML")
    values = parse_yaml(file.read_bytes(), str(file), quote=not extended)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a mapping at the top level, got {type(values).__name__}")
    return values


def _override_layer(word: str) -> _Layer:
    key, equals, text = word.partition("=")
    if looks_secret(word):
        raise ConfigError(
            f"{key}: the value looks like a secret, and all users of this machine can see a command line. Give "
            "credentials of a store in its own settings, for example AWS_PROFILE, and no secret in a config"
        )
    names = re.sub(r"\[([^\]]*)\]", r".\1", key).split(".")  # a[b] is another spelling of a.b
    if not equals or not all(names):
        raise ConfigError(f"'{word}' is not of the form key=value")
    value = parse_yaml(text, f"'{word}'")
    for name in reversed(names):
        value = {name: value}
    return _Layer(f"command line ({word})", value)


@contextmanager
def _as_config_error(where: str) -> Iterator[None]:
    """Raise errors of OmegaConf as `ConfigError`. Some of them are of Python's own types."""
    try:
        yield
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from error


def _beside(schema: type, values: dict[str, Any], folder: Path, searched: dict[str, list[str]], at: str = "") -> Any:
    """`values` of a file in `folder`, with each relative input path that exists there replaced by its full path.

    `searched` gets the places of each such path by dotted key, the value last.
    """
    found = dict(values)
    hints = get_type_hints(schema)
    paths = {one.name for one in fields(schema) if one.metadata.get("path")}
    for name, value in values.items():
        key = f"{at}{name}"
        if isinstance(value, dict) and _is_dataclass_type(hints[name]):
            found[name] = _beside(hints[name], value, folder, searched, f"{key}.")
        elif name in paths:
            searched.pop(key, None)
            if isinstance(value, str) and value and not _ELSEWHERE.match(value):
                place = folder / value
                found[name] = str(place) if os.path.exists(place) else value  # False for a name that is too long
                searched[key] = [*dict.fromkeys((str(place), value))]
    return found


def _with_home(value: Any, where: str) -> Any:
    """Plain containers with `~` at the beginning of a text replaced by the home folder."""
    if isinstance(value, dict):
        return {key: _with_home(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_home(item, where) for item in value]
    return home_expanded(value) if isinstance(value, str) else value


def _is_dataclass_type(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


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
