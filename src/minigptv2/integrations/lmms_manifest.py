"""Registers the model of `lmms_eval.py` with lmms-eval, which loads this entry point before its own modules."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of `minigptv2`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("minigptv2", simple_class_path="minigptv2.integrations.lmms_eval.LmmsModel")
