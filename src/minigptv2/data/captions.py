"""Captioned images in other people's tars (img2dataset's and alike) as records: an image beside a json or a txt.

Knows what such a json calls things; the pictures are described as they lie in the tar, so sizes are the stored ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from minigptv2.errors import DataError
from minigptv2.record import Record, Turn, validate

TEXT_EXTENSIONS = ("json", "txt")
"""Where a caption may stand, the better place first."""
_CAPTION_KEYS = ("caption", "text")
_KEPT_KEYS = ("url", "key", "sha256")
"""What of img2dataset's json is kept as provenance."""


def record_of_caption(extension: str, data: bytes, size: Callable[[], tuple[str, int, int]], where: str) -> Record:
    """The caption record of one sample. `size` gives format, width and height of the image, asked only where the text
    does not say. Raises `DataError`, beginning with `where`, for a sample without a caption."""
    try:
        document = {"caption": data.decode()} if extension == "txt" else json.loads(data)
        caption = next((document[key] for key in _CAPTION_KEYS if document.get(key)), None)
        width, height = document.get("width"), document.get("height")
        if isinstance(caption, str):
            caption.encode()  # half a surrogate pair, which JSON can spell, is a ValueError here, not in the tokenizer
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not a captioned image's {extension}: {error}") from error
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"{where}: no caption ({' or '.join(_CAPTION_KEYS)}) in its {extension}")
    if not (isinstance(width, int) and isinstance(height, int)):
        _, width, height = size()
    source = {key: str(document[key]) for key in _KEPT_KEYS if document.get(key)}
    record = Record((Turn("caption", answers=(caption.strip(),)),), width, height, source)
    validate(record, where)
    return record
