"""Samples of webdataset tars that img2dataset wrote: `<key>.jpg` beside `<key>.json` and often `<key>.txt`.

The pictures' bytes are not read here, only where they lie; headers and JSON are. Nothing is extracted or executed.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.data.sources.draft import Rejected, TarMember
from minigptv2.data.tar import TarError, find_members

DAMAGED = "tar damaged from some byte on"
IMAGES = ("jpg", "jpeg", "png", "webp")


@dataclass(slots=True)
class Entry:
    """One key of a tar: what its json says, its caption (of the json, else of the txt), and its picture."""

    key: str
    facts: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    image: TarMember | bytes | None = None

    @property
    def caption(self) -> str:
        return str(self.facts.get("caption") or self.text or "")


def entries(file: Path) -> Iterator[Entry | Rejected]:
    """The keys of one tar in order, each named `<tar>-<key>`. A damaged tar yields what stands before the damage."""
    if file.stat().st_size == 0:
        yield Rejected(f"{file.name} (empty file)", DAMAGED)
        return
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        current: Entry | None = None
        view = memoryview(data)
        try:
            for member in find_members(view):
                name, _, extension = member.name.rpartition("/")[2].partition(".")
                key = f"{file.stem}-{name}"
                if current is None or current.key != key:
                    yield from _whole(current)
                    current = Entry(key)
                end = member.data_offset + member.size
                body = bytes(view[member.data_offset : end]) if extension in ("json", "txt") else None
                _take(current, extension.lower(), body, member, file)
            yield from _whole(current)
        except TarError as error:
            yield from _whole(current)
            yield Rejected(f"{file.name} ({error})", DAMAGED)
        finally:
            view.release()


def _take(entry: Entry, extension: str, body: bytes | None, member: Any, file: Path) -> None:
    if extension in IMAGES:
        entry.image = TarMember(str(file), member.data_offset, member.size)
    elif extension == "json" and body is not None:
        try:
            facts = json.loads(body)
        except (ValueError, RecursionError):
            facts = None
        entry.facts = facts if isinstance(facts, dict) else {}
    elif extension == "txt" and body is not None:
        entry.text = body.decode("utf-8", "replace")


def _whole(entry: Entry | None) -> Iterator[Entry | Rejected]:
    if entry is None:
        return
    if entry.image is None:
        yield Rejected(entry.key, "no image in the tar")
    else:
        yield entry
