"""Groups the members of a tar into samples: members with the same key, whatever their order.

`shards build` and `shards index` read other programs' tars through this module. A member that is no plain file, or
whose name cannot be used, costs its own sample. Members that macOS adds are passed over. Extra members are listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minigptv2.shards.image_files import IMAGE_EXTENSIONS
from minigptv2.shards.tar import Member, TarError, printable, scan_members
from minigptv2.shards.tar_captions import TEXT_EXTENSIONS

IMAGE = "image"
MACOS = "members that macOS adds (._*, __MACOSX, .DS_Store)"
DAMAGED = "damaged archive"
"""The beginning of the reason for a tar that is not read to its end. The number of samples behind is unknown."""
TWO_OF_A_KIND = "two members of one kind"
IGNORE_EXTRA = "--ignore-extra"


@dataclass(slots=True)
class Group:
    """The members of one key. `is_adjacent`: no member of another key lies between them."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    """By kind: `IMAGE`, `json`, `txt`."""
    extras: list[Member] = field(default_factory=list)
    """Members that are neither an image nor a text."""
    problem: str = ""
    """Why the sample cannot be used, if one of its members says so."""
    is_adjacent: bool = True

    @property
    def is_extra(self) -> bool:
        """Whether it has neither an image nor a text."""
        return not self.members and not self.problem

    @property
    def extra_problem(self) -> str:
        """Which extra member is in the way, and what to do, for readers that do not pass over them."""
        name = printable(self.extras[0].name)
        return f"member '{name}' is not an image, json or txt and was not opened; {IGNORE_EXTRA} passes over it"


@dataclass(slots=True)
class TarContent:
    """The groups of one tar in order of first appearance, and what is not part of any."""

    groups: list[Group] = field(default_factory=list)
    macos: list[str] = field(default_factory=list)
    """Names of members that macOS added."""
    damage: str = ""
    """Why the tar is not read to its end."""

    def extras(self) -> list[str]:
        """Names of the extra members."""
        return [one.name for group in self.groups for one in group.extras]


def read_groups(data: bytes | memoryview) -> TarContent:
    """The samples of a tar. A damaged archive is read up to the damage."""
    content = TarContent()
    found: dict[str, Group] = {}
    last = None
    try:
        for member in scan_members(data):
            if is_of_macos(member.name):
                content.macos.append(member.name)
                continue
            key, extension = split_name(member.name)
            group = found.get(key)
            if group is None:
                group = found[key] = Group(printable(key))
                content.groups.append(group)
            elif last is not group:
                group.is_adjacent = False
            last = group
            _add(group, member, extension)
    except TarError as error:
        content.damage = f"{DAMAGED}: {error}; the rest is not read"
    for group in content.groups:
        if IMAGE not in group.members and not group.problem:
            group.problem = _dotted_image(group)
    return content


def _dotted_image(group: Group) -> str:
    """The problem of an image whose name has a dot before its extension, or an empty text."""
    for member in group.extras:
        extension = split_name(member.name)[1]
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            return f"member '{printable(member.name)}' has a dot in its key: keys end at the first dot; rename it"
    return ""


def _add(group: Group, member: Member, extension: str) -> None:
    kind = IMAGE if extension in IMAGE_EXTENSIONS else extension
    if member.problem:
        group.problem = group.problem or f"member '{printable(member.name)}' {member.problem}"
    elif kind != IMAGE and kind not in TEXT_EXTENSIONS:
        group.extras.append(member)
    elif kind in group.members:
        group.problem = group.problem or TWO_OF_A_KIND
    else:
        group.members[kind] = member


def is_of_macos(name: str) -> bool:
    """Whether a member or a file is one that macOS adds to archives and folders."""
    *folders, base = name.split("/")
    return base.startswith("._") or base == ".DS_Store" or "__MACOSX" in (*folders, base)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member's name, split as webdataset does: at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def at_least(reason: str, count: int) -> str:
    """The number of lost samples, for a message: what lies behind the damage of an archive is not known."""
    return f"at least {count:,}" if reason.startswith(DAMAGED) else f"{count:,}"
