"""Checks the interpolations of a config before they are resolved: `${key}` and `${oc.env:NAME}`, and no others.

A reference to another key is allowed everywhere. A value of the environment is allowed only in fields that are declared
with `environment=True`, also where a reference leads to it. The length of the result is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

from minigptv2.errors import ConfigError

_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w-]*(?:\.[\w-]+)*)\}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:[A-Za-z_]\w*(?:,[^${}]*)?\}")
_OPENING = "${"
_MAX_LENGTH = 1 << 16
"""Longest value, in characters. References that double each other would fill the memory."""


class Interpolations:
    """The unresolved values of a config by dotted key, of which some hold interpolations."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._leaves = dict(_leaves(values))

    @cached_property
    def keys(self) -> list[str]:
        """Keys of the values that hold an interpolation."""
        return [key for key, texts in self._leaves.items() if any(_OPENING in text for text in texts)]

    def check(self, key: str, *, environment: bool) -> None:
        """Raise `ConfigError` for another kind of interpolation, and for one of the environment unless it is allowed.

        Also raised for a value that refers to itself or would become too long.
        """
        if self._length(key, ()) > _MAX_LENGTH:
            raise ConfigError(f"{key} would have more than {_MAX_LENGTH:,} characters")
        if not environment and self._reads_environment(key, set()):
            raise ConfigError(
                f"{key} must not use the environment (oc.env): only keys of a run's own config that name a folder, a "
                "file or a store may, and never a recipe. Write the value itself"
            )

    def _texts(self, key: str) -> list[str]:
        """The texts of a value, or of all values of a section."""
        return [text for name, texts in self._leaves.items() if _is_below(name, key) for text in texts]

    def _length(self, key: str, above: tuple[str, ...], known: dict[str, int] | None = None) -> int:
        known = {} if known is None else known
        if key in above:
            raise ConfigError(f"{key} refers to itself")
        if key not in known:
            total = 0
            for text in self._texts(key):
                rest = _REFERENCE.sub("", _ENVIRONMENT.sub("", text))
                if _OPENING in rest:
                    raise ConfigError(f"{key}: only ${{key}} and ${{oc.env:NAME}} can be interpolated")
                total += len(rest) + sum(self._length(name, (*above, key), known) for name in _REFERENCE.findall(text))
            known[key] = total
        return known[key]

    def _reads_environment(self, key: str, seen: set[str]) -> bool:
        if key in seen:
            return False
        seen.add(key)
        return any(
            _ENVIRONMENT.search(text) or any(self._reads_environment(name, seen) for name in _REFERENCE.findall(text))
            for text in self._texts(key)
        )


def _is_below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Collection[str]]]:
    """Each leaf's dotted key with its texts. A list is one leaf."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, list(_texts_in(value))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)
