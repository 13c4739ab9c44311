"""Parses the YAML of configs and `key=value` words, and checks the parsed values against the types of dataclass fields.

Every scalar is read as it is written: YAML 1.1 would read `1:30:00` as 5400, `010` as 8, `on` as true and `2017-01-01`
as a date. The type of its field then decides what a text means. Keys are always text, so a corpus may be named `2017`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from minigptv2.errors import ConfigError, nearest

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_QUOTED = re.compile(r"'.*'|\".*\"", re.S)
_KEY = re.compile(r"[A-Za-z_][\w.-]{0,60}")
_WHOLE = re.compile(r"[+-]?[0-9][0-9_]*")
_SPECIAL = re.compile(r"[+-]?\.(inf|nan)", re.I)
_SCALARS = ("bool", "int", "float", "timestamp", "binary")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list [a, b]"}
_MISSING = "???"
"""What stands for a mandatory value that another layer sets."""
_MAPPING = "a mapping (name: value)"
MAX_YAML_BYTES = 1 << 17
"""Largest YAML text, which takes at most about 3 s to parse. That of a run has 2 KiB."""
MAX_YAML_VALUES = 50_000
"""Largest number of values in a YAML text."""
MAX_PATH_BYTES, MAX_NAME = 4095, 255
"""Longest path, and longest name in it, on Linux."""
_IN_PROGRESS = -1
_MAX_DIGITS = 40
_MAX_SHOWN = 80


class _Loader(yaml.SafeLoader):
    """Reads every scalar but null as text, and refuses duplicate keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """The mapping with the text of each key, and no key twice."""
        written = Counter(_text_of(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        self.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
            if written[key.value] > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key.value}'", key.start_mark)
            found[key.value] = self.construct_object(value, deep=True)
        return found


for _name in _SCALARS:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", yaml.SafeLoader.construct_scalar)


def parse_yaml(text: str | bytes, where: str, *, quote: bool = True) -> Any:
    """The value of a YAML text: mappings, lists, texts and None. Raises `ConfigError` naming `where` and the line.

    With `quote=False` the error repeats nothing of the text.
    """
    try:
        return _parsed(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = str(error.problem or error.context)
        reason = problem if quote else _QUOTED.sub("'...'", problem)
        raise ConfigError(f"{where}: not valid YAML: {line}{reason}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error


def _parsed(text: str | bytes) -> Any:
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} bytes, at most {MAX_YAML_BYTES:,} are read")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_of(node, {}) > MAX_YAML_VALUES:
            raise yaml.YAMLError(f"it has more than {MAX_YAML_VALUES:,} values when its aliases are expanded")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values_of(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a tree with every alias expanded, because a value is copied where it is used."""
    if known.get(id(node)) == _IN_PROGRESS:
        raise yaml.YAMLError("found a recursive value")
    if id(node) not in known:
        known[id(node)] = _IN_PROGRESS
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_values_of(part, known) for part in below)
    return known[id(node)]


def _text_of(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else ""


def checked(hint: Any, value: Any, where: str, key: str = "") -> Any:
    """`value` with each text converted to the type of its field in the type `hint`.

    Raises `ConfigError` naming `where`, the key and what was expected for an unknown key, another shape (a list for a
    mapping), a text that is not of the field's type, and a number that is not finite.
    """
    options = [part for part in get_args(hint) if part is not NoneType] if _is_union(hint) else [hint]
    kind = options[0]
    if value is None:
        if _is_union(hint) and NoneType in get_args(hint):
            return None
        raise ConfigError(f"{where}: {_name_of(key)} must be {_expected(kind)}, got null")
    if isinstance(value, str) and ("${" in value or value == _MISSING):
        return value  # resolved when all layers are merged
    if isinstance(kind, type) and is_dataclass(kind):
        named = _fields(kind, value, where, key)
        return {name: checked(hint, value[name], where, _join(key, name)) for name, hint in named}
    if get_origin(kind) is dict:
        named = _require(value, Mapping, kind, where, key)
        return {name: checked(get_args(kind)[1], item, where, _join(key, name)) for name, item in named.items()}
    if get_origin(kind) is list:
        items = _require(value, list, kind, where, key)
        return [checked(get_args(kind)[0], item, where, f"{key}[{number}]") for number, item in enumerate(items)]
    return _scalar(kind, value, where, key)


def _fields(kind: type, value: Any, where: str, key: str) -> Iterator[tuple[str, Any]]:
    """Each key of a mapping for the dataclass `kind` with the type of its field. Raises for an unknown key."""
    hints = get_type_hints(kind)
    for name in _require(value, Mapping, kind, where, key):
        if name not in hints and not _KEY.fullmatch(name):  # not a config: its lines are not for a log
            raise ConfigError(f"{where}: expected keys of a config, got a key that is no name")
        if name not in hints:
            raise ConfigError(f"{where}: unknown key '{_join(key, name)}'{_suggestion(kind, key, name)}")
        yield name, hints[name]


def _suggestion(kind: type, key: str, name: str) -> str:
    leaves = _leaves(kind)
    same_name = [leaf for leaf in leaves if leaf.split(".")[-1] == name]
    if same_name:
        return f"; did you mean '{_join(key, same_name[0])}'?"
    return nearest(_join(key, name), [_join(key, leaf) for leaf in leaves])


def _leaves(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a dataclass, nested fields included. Fields nearer the top come first."""
    hints = get_type_hints(schema)
    below = [leaf for name, hint in hints.items() if is_dataclass(hint) for leaf in _leaves(hint, f"{prefix}{name}.")]  # type: ignore[arg-type]
    return [f"{prefix}{name}" for name in hints] + below


def _require(value: Any, shape: type, kind: Any, where: str, key: str) -> Any:
    """`value` if it has the shape. Raises `ConfigError` for another one."""
    if isinstance(value, shape):
        return value
    if shape is list and isinstance(value, Mapping) and all(name.isdigit() for name in value):
        raise ConfigError(f"{where}: {key} is a list, whose items cannot be set one by one: write {key}=[a, b]")
    raise ConfigError(f"{where}: {_name_of(key)} must be {_expected(kind)}, got {_shown(value)}")


def _scalar(kind: Any, value: Any, where: str, key: str) -> Any:
    wrong = ConfigError(f"{where}: {_name_of(key)} must be {_expected(kind)}, got {_shown(value)}")
    if not isinstance(value, str):
        raise wrong
    text = value.strip()
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise wrong
        return _BOOLEANS[text.lower()]
    if kind is int:
        if not _WHOLE.fullmatch(text) or len(text) > _MAX_DIGITS:
            raise wrong
        return int(text)
    if kind is float:
        try:
            number = float(text.replace(".", "", 1) if _SPECIAL.fullmatch(text) else text)
        except ValueError:
            raise wrong from None
        check_finite(number, where, key)
        return number
    return value


def check_finite(value: Any, where: str, key: str) -> None:
    """Raise `ConfigError` if a number, or one in a list or mapping, is not finite."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, where, _join(key, name))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            check_finite(item, where, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} must be a finite number, got {value}")


def check_place(value: Any, where: str, key: str) -> None:
    """Raise `ConfigError` for the text of a path that no file system has, because a name in it is too long.

    The system would report it wherever the path is used first, as an error of its own.
    """
    if not isinstance(value, str) or "://" in value:
        return
    if len(value.encode(errors="surrogatepass")) > MAX_PATH_BYTES or max(map(len, value.split("/"))) > MAX_NAME:
        raise ConfigError(
            f"{where}: {key} is no path: it has {len(value):,} characters. A name has at most {MAX_NAME} and a path "
            f"{MAX_PATH_BYTES:,}; got {value[:_MAX_SHOWN]}..."
        )


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _name_of(key: str) -> str:
    return key or "the file"


def _expected(kind: Any) -> str:
    if get_origin(kind) is dict or is_dataclass(kind):
        return _MAPPING
    return _KINDS.get(get_origin(kind) or kind, str(kind))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return f"'{text}'" if len(text) <= _MAX_SHOWN else f"'{text[:_MAX_SHOWN]}...'"
