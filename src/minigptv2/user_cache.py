"""Finds the folder where this user's processes keep what they can compute or read again."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from minigptv2.errors import ConfigError
from minigptv2.files import own_folder


def user_cache_folder(name: str) -> Path:
    """`minigptv2/<name>` in the user's cache, else a folder below the temporary one, if there is no usable home.

    Its content can be trusted: nobody else can write to it.
    """
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        folder = Path(base) / "minigptv2" / name
        if folder.is_absolute():  # a user without a home folder leaves `~` as it is
            try:
                own_folder(folder)
            except (OSError, ConfigError):  # not usable, or others could change what is trusted there
                continue
            if os.access(folder, os.W_OK):
                return folder
    return _private_folder(Path(tempfile.gettempdir()) / f"minigptv2-{os.getuid()}")


def _private_folder(folder: Path) -> Path:
    """`folder`, which others can neither read nor have made: its files are trusted. A new one if it is not ours."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="minigptv2-"))
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    return folder if ours else Path(tempfile.mkdtemp(prefix="minigptv2-"))
