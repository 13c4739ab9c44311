"""Datasets that public tools wrote. `write_exports.py` says which, and what they hold."""

from __future__ import annotations

import zipfile
from pathlib import Path

EXPORTS = Path(__file__).parent


def unpack(name: str, folder: Path) -> Path:
    """Unpack the archive of this name into a folder below `folder`."""
    with zipfile.ZipFile(EXPORTS / f"{name}.zip") as archive:
        archive.extractall(folder / name)
    return folder / name
