"""Defines an entry of a user's file or folder: a draft, or what is wrong with it and what to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigptv2.corpora.draft import Draft
from minigptv2.corpora.own_entry import draft_of, is_id
from minigptv2.corpora.own_image import as_json
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError

TOO_DEEP = "its lists are nested too deeply"


@dataclass(frozen=True, slots=True)
class OwnEntry:
    """One entry of a file, and its name in messages, such as `line 3` or `image 17`.

    Without a draft, `problem` says why. A `mistake` stops the build. Other problems are only counted as dropped.
    """

    name: str
    draft: Draft | None
    problem: str = ""
    mistake: bool = True


def entry_of(name: str, number: int, entry: Any, file: Path, raw: Raw) -> OwnEntry:
    """The entry of an object of a file, named `name` and by its id. `number` is its position in the file."""
    if isinstance(entry, dict) and is_id(entry.get("id")):
        name = f"{name} (id {as_json(entry['id'])})"
    try:
        return OwnEntry(name, replace(draft_of(number, entry, file, raw), label=name, upright=True))
    except DataError as error:
        return OwnEntry(name, None, str(error))
    except RecursionError:
        return OwnEntry(name, None, TOO_DEEP)
