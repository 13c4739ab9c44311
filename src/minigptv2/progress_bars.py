"""Shows progress bars on a terminal, and nothing in a file or a log."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from minigptv2.secrets import guarded
from minigptv2.terminal_text import one_line, unguarded

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
_MOVES = re.compile(r"(\r|\x1b\[A)")
"""What a bar moves the cursor by: to the begin of the line, and up."""


class _BarOutput:
    """The stream of a bar: guarded as all output is, except for the movements of the bar."""

    def __init__(self, below: TextIO) -> None:
        self._below = below

    def write(self, text: str) -> int:
        self._below.write("".join(part if _MOVES.fullmatch(part) else guarded(part) for part in _MOVES.split(text)))
        return len(text)

    def __eq__(self, other: object) -> bool:
        """Whether another stream writes to the same place: tqdm then moves the bar below what is printed there."""
        return other is self or getattr(other, "_wrapped", other) is self._below

    def __hash__(self) -> int:
        return id(self._below)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def progress_bar(items: Iterable[Item] | None = None, *, desc: str | None = None, **options: Any) -> tqdm[Item]:
    """A progress bar of tqdm on stderr, over `items`. Nothing is shown if stderr is no terminal, or with `disable`."""
    from tqdm import tqdm

    below = unguarded(sys.stderr)
    hidden = options.pop("disable", False) or not below.isatty()
    return tqdm(items, desc=one_line(desc) if desc else None, file=_BarOutput(below), disable=hidden, **options)
