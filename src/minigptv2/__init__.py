"""MiniGPT-v2, trained in three stages under DeepSpeed ZeRO-3. `src/minigptv2/README.md` shows the package layout."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A name of the public API in `api`, imported when it is first used."""
    return getattr(import_module("minigptv2.api"), name)
