"""Finds the tars below a folder, through links too, and names every file that is not one of them.

A compressed tar and a link to nothing cannot be read: they are errors, with what to do. Other files are unused.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minigptv2.errors import counted
from minigptv2.shards.dropped import DROPPED_FILE
from minigptv2.shards.manifest import INDEX_FILE, MANIFEST_FILE, TABLE_FILE
from minigptv2.shards.passed_over import first_names
from minigptv2.shards.tar_samples import is_of_macos
from minigptv2.shards.turn_counts import TURNS_FILE

_TAR = ".tar"
_TOOLS = {
    "gunzip": (".tar.gz", ".tgz", ".taz", ".tar.z"),
    "bunzip2": (".tar.bz2", ".tbz2", ".tbz", ".tb2"),
    "unxz": (".tar.xz", ".txz", ".tar.lzma", ".tlz"),
    "unzstd": (".tar.zst", ".tzst"),
    "unlz4": (".tar.lz4",),
    "brotli -d": (".tar.br",),
    "unzip and tar": (".tar.zip",),
}
_OURS = (MANIFEST_FILE, TABLE_FILE, INDEX_FILE, TURNS_FILE, DROPPED_FILE, "preview.html")


@dataclass
class TarFiles:
    """The tars below a folder, sorted, and every other file by its path below the folder.

    `unreadable` gives the reason and what to do. `unused` lists files of other kinds, without hidden ones and those
    that belong to a corpus. `repeated` lists links to tars and folders that are read under another path.
    """

    tars: list[Path] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def describe_unused(self) -> list[str]:
        """One line that names the unused files, and one that names the repeated ones, if there are any."""
        lines = []
        if self.unused:
            kinds = Counter(Path(file).suffix or "without extension" for file in self.unused)
            listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
            number, names = counted(len(self.unused), "files"), first_names(sorted(self.unused))
            lines.append(f"not used: {number} beside the tars ({listed}): {names}")
        if self.repeated:
            lines.append(f"not used: links to what is read under another path: {first_names(sorted(self.repeated))}")
        return lines


def find_tars(folder: Path) -> TarFiles:
    """All files below the folder, divided. Links are followed after everything else. Each folder and tar is read once.

    The path of a tar does not depend on a link if it can be reached without one.
    """
    found, seen = TarFiles(), set[tuple[int, int]]()
    links = _walk(folder, folder, found, seen)
    while links:
        link = links.pop(0)
        links += _add(link, folder, found, seen)
    found.tars.sort()
    return found


def _walk(path: Path, top: Path, found: TarFiles, seen: set[tuple[int, int]]) -> list[Path]:
    """Add everything below a folder, and return the links in it."""
    links: list[Path] = []
    try:
        status = path.stat()
        entries = sorted(path.iterdir())
    except OSError as error:
        found.unreadable[str(path.relative_to(top))] = f"the folder cannot be read: {error.strerror}"
        return links
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        links += [entry] if entry.is_symlink() else _add(entry, top, found, seen)
    return links


def _add(path: Path, top: Path, found: TarFiles, seen: set[tuple[int, int]]) -> list[Path]:
    """Add a file, or everything below a folder, whose links are returned."""
    name = str(path.relative_to(top))
    try:
        status = path.stat()
    except OSError as error:
        found.unreadable[name] = _why(path, error)
        return []
    again = (status.st_dev, status.st_ino) in seen
    is_folder = stat.S_ISDIR(status.st_mode)
    is_tar = stat.S_ISREG(status.st_mode) and path.suffix.lower() == _TAR and not is_of_macos(path.name)
    if again and (is_folder or is_tar):
        found.repeated.append(name)
    elif is_folder:
        return _walk(path, top, found, seen)
    elif is_tar and not _is_utf8(name):
        found.unreadable[name] = "its name is not UTF-8: rename it"
    elif is_tar:
        seen.add((status.st_dev, status.st_ino))
        found.tars.append(path)
    elif tool := _tool_of(path.name):
        found.unreadable[name] = f"is compressed, and samples are read in place: decompress it with {tool}"
    elif (not path.name.startswith(".") or path.suffix.lower() == _TAR) and name not in _OURS:
        found.unused.append(name)
    return []


def _is_utf8(name: str) -> bool:
    """Whether a path can be written in a table. Bytes that are not UTF-8 are halves of surrogate pairs in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"links to {os.readlink(path)}, which does not exist: mount its disk, or remove the link"
    return f"cannot be read: {error.strerror}"


def _tool_of(name: str) -> str:
    """The program that decompresses a file named like a compressed tar, or an empty text."""
    lower = name.lower()
    return next((tool for tool, endings in _TOOLS.items() if lower.endswith(endings)), "")
