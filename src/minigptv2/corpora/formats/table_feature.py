"""Reads the features that Hugging Face `datasets` stores with a table, and gives values the names of their classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from minigptv2.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Feature = Any
"""A feature as JSON: an object with `_type`, an object of features, or a list of one."""
_METADATA = b"huggingface"
_LISTS = ("Sequence", "List", "LargeList")
_CLASS, _IMAGE = "ClassLabel", "Image"
_UNLABELED = -1


def features_of(schema: pa.Schema) -> dict[str, Feature]:
    """The features by column, from the metadata of the schema. Empty if another tool wrote the file."""
    text = (schema.metadata or {}).get(_METADATA)
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise DataError("the metadata 'huggingface' of its schema is not JSON: write the file again") from error
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def is_image(feature: Feature) -> bool:
    """Whether a feature is an image, or a list of images."""
    inner = _inner(feature)
    return is_image(inner) if inner is not None else isinstance(feature, dict) and feature.get("_type") == _IMAGE


def classes_of(feature: Feature) -> list[str]:
    """The names of the first classes inside a feature. Empty if it has none."""
    if isinstance(feature, dict) and feature.get("_type") == _CLASS:
        return _names(feature)
    inner = [_inner(feature)] if _inner(feature) is not None else []
    fields = list(feature.values()) if isinstance(feature, dict) and "_type" not in feature else []
    return next((names for one in (*inner, *fields) if (names := classes_of(one))), [])


def named(value: Any, feature: Feature, what: str) -> Any:
    """The value with class numbers replaced by names, and an object of lists that stands for a list as that list.

    Raises `DataError` for a number that is no class.
    """
    if value is None or feature is None:
        return value
    if isinstance(feature, dict) and feature.get("_type") == _CLASS:
        return _class_name(value, _names(feature), what)
    inner = _inner(feature)
    if inner is not None and isinstance(value, list):
        return [named(one, inner, what) for one in value]
    fields = inner if inner is not None else feature
    if isinstance(value, dict) and isinstance(fields, dict) and "_type" not in fields:
        wrap = (lambda one: [one]) if inner is not None else (lambda one: one)  # Sequence({...}) holds lists
        return {key: named(one, wrap(fields.get(key)), f"{what}.{key}") for key, one in value.items()}
    return value


def transposed(value: Any) -> Any:
    """A list of objects, if the value is an object of lists of one length, as `datasets` stores such lists."""
    if not isinstance(value, dict) or not value or not all(isinstance(one, list) for one in value.values()):
        return value
    lengths = {len(one) for one in value.values()}
    if len(lengths) != 1:
        listed = ", ".join(f"{key} {len(one)}" for key, one in value.items())
        raise DataError(f"its lists have different lengths: {listed}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _inner(feature: Feature) -> Feature:
    """The feature of the items of a list, or None for another feature."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return feature.get("feature") if isinstance(feature, dict) and feature.get("_type") in _LISTS else None


def _names(feature: dict[str, Any]) -> list[str]:
    names = feature.get("names")
    names = list(names.values()) if isinstance(names, dict) else names
    return names if isinstance(names, list) and all(isinstance(one, str) for one in names) else []


def _class_name(value: Any, names: list[str], what: str) -> Any:
    if isinstance(value, str) or value == _UNLABELED:
        return value if isinstance(value, str) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(names):
        raise DataError(f"{what} is {value}; expected a class from 0 to {len(names) - 1}")
    return names[value]
