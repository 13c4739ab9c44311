"""Reads webdataset tars that img2dataset wrote: `<key>.jpg` with `<key>.json` and often `<key>.txt`.

Headers and texts are read. Of an image only its offset and size are kept. Nothing is extracted or executed.
`shards.tar_samples` and `shards.tar_captions` are the rules, which `shards index` shares.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.corpora.draft import Rejected, TarMember
from minigptv2.corpora.raw import Raw
from minigptv2.damaged_text import BYTE_ORDER_MARK
from minigptv2.errors import DataError, counted
from minigptv2.shards.tar import Member, printable
from minigptv2.shards.tar_captions import CAPTION_KEYS, caption_of, facts_of, is_other_text
from minigptv2.shards.tar_files import find_tars
from minigptv2.shards.tar_samples import DAMAGED, IMAGE, Group, read_groups


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
    """One key of a tar: the content of its json, the bytes of its txt, and its image."""

    key: str
    facts: dict[str, Any] = field(default_factory=dict)
    text: bytes | None = None
    image: TarMember | bytes | None = None

    @property
    def caption(self) -> str:
        """The caption, empty if there is none. Raises `DataError` for one that cannot be read without loss."""
        return caption_of(self.facts, self.text)

    @property
    def has_other_text(self) -> bool:
        """Whether the txt says something else than the caption of the json, which is used."""
        caption = caption_of(self.facts)
        return bool(caption and self.text and is_other_text(self.text, caption))

    @property
    def has_mark(self) -> bool:
        """Whether a caption of the json contains a byte order mark, which `caption` lacks."""
        return any(BYTE_ORDER_MARK in str(self.facts.get(key)) for key in CAPTION_KEYS)


def tars_of(raw: Raw, folder: str, *, minigpt4: tuple[str, ...] = ()) -> list[Path]:
    """All tars below a folder of the root (else one of MiniGPT-4's layout), sorted, through links too.

    Raises `MissingFilesError` if there is none, and `DataError` for a compressed tar or a link to nothing. Other files
    are named in the notes.
    """
    top = raw.find(folder, minigpt4=minigpt4)
    found = find_tars(top)
    if found.unreadable:
        listed = "\n".join(f"  {top / file}: {reason}" for file, reason in found.unreadable.items())
        raise DataError(f"{raw.corpus}: {counted(len(found.unreadable), 'files')} cannot be read:\n{listed}")
    if not found.tars:
        raw.missing(f"{folder}/*.tar", f"{folder}/*/*.tar", minigpt4=[f"{other}/*.tar" for other in minigpt4])
    for line in found.describe_unused():
        raw.note(line)
    return found.tars


def entries(file: Path, raw: Raw) -> Iterator[Entry | Rejected]:
    """The keys of one tar in order of first appearance, named `<tar>-<key>`. A damaged tar is read up to the damage.

    Members with the same key belong together, also if they are not adjacent. Two members of one kind (image, json,
    txt), or a json that cannot be read, reject the whole key, since the text may belong to another image.
    """
    if file.stat().st_size == 0:
        yield Rejected(f"{file.name} (empty file)", DAMAGED)
        return
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            content = read_groups(view)
            for group in content.groups:
                if group.is_extra:
                    continue
                entry = _entry(f"{file.stem}-{group.key}", group, view, file)
                if isinstance(entry, Entry) and entry.has_other_text:
                    raw.passed_over.other_texts.add([f"{file.name} / {printable(group.members['txt'].name)}"])
                yield entry
        finally:
            view.release()
    if content.damage:
        yield Rejected(f"{file.name} ({content.damage})", DAMAGED)
    raw.passed_over.add_members(file.name, content)


def _entry(key: str, group: Group, view: memoryview, file: Path) -> Entry | Rejected:
    def data(member: Member) -> bytes:
        return bytes(view[member.data_offset : member.data_offset + member.size])

    if group.problem:
        return Rejected(key, group.problem)
    image, facts, text = (group.members.get(kind) for kind in (IMAGE, "json", "txt"))
    if image is None:
        return Rejected(key, "no image in the tar")
    try:
        entry = Entry(key, {} if facts is None else facts_of(data(facts)), None if text is None else data(text))
        entry.image = TarMember(str(file), image.data_offset, image.size)
        _ = entry.caption
    except DataError as error:
        return Rejected(key, str(error))
    return entry
