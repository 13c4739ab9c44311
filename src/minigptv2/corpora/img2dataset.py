"""Reads webdataset tars that img2dataset wrote: `<key>.jpg` with `<key>.json` and often `<key>.txt`.

Headers and JSON are read. Of an image only its offset and size are kept. Nothing is extracted or executed.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.corpora.draft import Rejected, TarMember
from minigptv2.shards.image_files import IMAGE_EXTENSIONS
from minigptv2.shards.reader import TEXT_EXTENSIONS, split_name
from minigptv2.shards.tar import Member, TarError, find_members

DAMAGED = "tar damaged from some byte on"
IMAGE = "image"


def img2dataset(urls: str, folder: str, *, format: str, url: str, caption: str, more: str = "") -> str:
    """The command that writes such tars from a list of links. `url` and `caption` are the names of its columns.

    The defaults of img2dataset store no captions, and pad images to squares of 256 px, for which boxes are wrong.
    """
    return (
        f"img2dataset --url_list {urls} --input_format {format} --url_col {url} --caption_col {caption} {more}"
        "--resize_mode keep_ratio --resize_only_if_bigger True --image_size 512 --output_format webdataset "
        f"--output_folder {folder}"
    )


@dataclass(slots=True)
class Entry:
    """One key of a tar: the content of its json, its caption (from the json, else from the txt), and its image."""

    key: str
    facts: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    image: TarMember | bytes | None = None

    @property
    def caption(self) -> str:
        """The caption, empty if there is none."""
        return str(self.facts.get("caption") or self.text or "")


def entries(file: Path) -> Iterator[Entry | Rejected]:
    """The keys of one tar in order of first appearance, named `<tar>-<key>`. A damaged tar is read up to the damage.

    Members with the same key belong together, also if they are not adjacent. Two members of one kind (image, json,
    txt), or a json that cannot be read, reject the whole key, since the text may belong to another image.
    """
    if file.stat().st_size == 0:
        yield Rejected(f"{file.name} (empty file)", DAMAGED)
        return
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        groups: dict[str, list[tuple[str, Member]]] = {}
        damage: Rejected | None = None
        try:
            try:
                for member in find_members(view):
                    name, extension = split_name(member.name)
                    groups.setdefault(name, []).append((extension, member))
            except TarError as error:
                damage = Rejected(f"{file.name} ({error})", DAMAGED)
            for name, members in groups.items():
                yield _entry(f"{file.stem}-{name}", members, view, file)
            if damage is not None:
                yield damage
        finally:
            view.release()


def _entry(key: str, members: list[tuple[str, Member]], view: memoryview, file: Path) -> Entry | Rejected:
    kinds = [IMAGE if extension in IMAGE_EXTENSIONS else extension for extension, _ in members]
    if any(kinds.count(kind) > 1 for kind in (IMAGE, *TEXT_EXTENSIONS)):
        return Rejected(key, "two members of one kind")
    if IMAGE not in kinds:
        return Rejected(key, "no image in the tar")
    entry = Entry(key)
    for kind, (_, member) in zip(kinds, members, strict=True):
        body = bytes(view[member.data_offset : member.data_offset + member.size]) if kind in TEXT_EXTENSIONS else b""
        if kind == IMAGE:
            entry.image = TarMember(str(file), member.data_offset, member.size)
        elif kind == "json":
            facts = _facts(body)
            if facts is None:
                return Rejected(key, "damaged json")
            entry.facts = facts
        elif kind == "txt":
            entry.text = body.decode("utf-8", "replace")
    return entry


def _facts(body: bytes) -> dict[str, Any] | None:
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None
