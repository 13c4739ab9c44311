"""Records what a block of code opens, runs and connects to, by an audit hook of the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WATCHED = ("open", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")
_recorders: list[list[tuple[str, str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _recorders and event in WATCHED:
        for recorder in _recorders:
            recorder.append((event, repr(arguments)))


sys.addaudithook(_hook)  # it cannot be removed, so there is one, which does nothing outside of `audited`


@contextmanager
def audited() -> Iterator[list[tuple[str, str]]]:
    """The events of the block, as (name, arguments). `sent` and `started` pick from them."""
    events: list[tuple[str, str]] = []
    _recorders.append(events)
    try:
        yield events
    finally:
        _recorders.remove(events)


def sent(events: list[tuple[str, str]]) -> list[str]:
    """What a block tried to reach over a network, name look-ups included."""
    return [arguments for event, arguments in events if event.startswith("socket.")]


def started(events: list[tuple[str, str]]) -> list[str]:
    """The processes that a block started."""
    return [arguments for event, arguments in events if not event.startswith("socket.") and event != "open"]


def opened(events: list[tuple[str, str]]) -> list[str]:
    """The files that a block opened."""
    return [arguments for event, arguments in events if event == "open"]
