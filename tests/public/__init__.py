"""Annotation files that their authors published, for tests. `LICENSES.txt` says where each is from."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def public_file(name: str) -> bytes:
    """The content of a published file, such as `refcoco/refcoco_val.json`. Skips the test if it is not here."""
    file = FOLDER / f"{name}.xz"
    if not file.is_file():
        pytest.skip(f"needs {file.relative_to(FOLDER.parent)}, a copy of the published {name} compressed with xz")
    return lzma.decompress(file.read_bytes())
