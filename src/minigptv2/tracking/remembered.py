"""Remembers, beside a run's results, what a tracker has recorded: the identity there and the last step by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from minigptv2.redacted_files import write_text

Value = TypeVar("Value")


class Remembered:
    """The file `file`, made at the first start with the identity that `create` returns."""

    def __init__(self, file: Path, create: Callable[[], str]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._last: dict[str, int] = {}
        if file.is_file():
            document = json.loads(file.read_text())
            self.identity: str = document["identity"]
            self._last = document["last"]
        else:
            self.identity = create()
            self._write()

    def new(self, step: int, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values that are not recorded for `step` or a later one. They count as recorded from now on."""
        chosen = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if chosen:
            self._last.update(dict.fromkeys(chosen, step))
            self._write()
        return chosen

    def _write(self) -> None:
        write_text(self._file, json.dumps({"identity": self.identity, "last": self._last}, indent=1) + "\n")
