"""All hostile payloads."""

from __future__ import annotations

from tests.hostile import configs, corpora, models, pickled, places
from tests.hostile.payload import Payload

PAYLOADS: list[Payload] = [
    *pickled.PAYLOADS,
    *models.PAYLOADS,
    *places.PAYLOADS,
    *corpora.PAYLOADS,
    *configs.PAYLOADS,
]
