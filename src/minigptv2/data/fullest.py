"""The largest pack that a run's settings allow, made of nothing: run first, so that memory ends at step 0 or never."""

from __future__ import annotations

import numpy as np

from minigptv2.data.collate import Batch, collate
from minigptv2.data.config import DataConfig
from minigptv2.prompt import IGNORE, IMAGE_PLACEHOLDER, Example

TEXT_TOKENS = 16
"""Text of the shortest sample about an image: the shorter, the more images a pack may hold."""


def fullest_pack(config: DataConfig, *, image_size: int, tokens_per_image: int, global_batch_size: int) -> Batch:
    """A pack of `max_pack_tokens` tokens, as many images as fit, each text token supervised.

    A step of `global_batch_size` samples cannot fill more than its own tokens. The same on every rank.
    """
    length = tokens_per_image + TEXT_TOKENS
    tokens = min(config.max_pack_tokens, config.max_tokens * global_batch_size)
    count = max(1, min(tokens // length, global_batch_size))
    lengths = [length] * count
    room = tokens - sum(lengths)
    for number in range(count):  # few samples: the room goes to longer texts
        more = min(room, config.max_tokens - length)
        lengths[number] += more
        room -= more
    rng = np.random.default_rng(0)
    examples = [_example(one, tokens_per_image) for one in lengths]
    images = [rng.integers(0, 256, (3, image_size, image_size), dtype=np.uint8) for _ in lengths]
    return collate(examples, images, image_size)


def _example(length: int, tokens_per_image: int) -> Example:
    ids = np.full(length, 1)
    ids[1 : 1 + tokens_per_image] = IMAGE_PLACEHOLDER
    labels = np.where(ids == 1, ids, IGNORE)
    labels[0] = IGNORE
    return Example(ids, labels, np.zeros(length, dtype=np.int64), 1)
