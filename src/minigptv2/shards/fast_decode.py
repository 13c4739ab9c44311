"""Decodes training images as `image_files` does for inference, and resizes them with torch's vectorized resize.

The result is within 2 levels of `image_files.square(image_files.open_image(...))` (Pillow's bicubic), which inference
uses, in less time. Seconds per stage are added up for the log.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from minigptv2.shards.image_files import pixels
from minigptv2.shards.image_header import MAX_PIXELS


class Stopwatch:
    """Adds up the seconds of each stage of work in `seconds`. Stages do not nest."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the seconds of the block for `stage`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


def square_pixels(data: bytes, where: str, side: int, watch: Stopwatch, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 [3, side, side]: the upright image in `data` squashed to a square. Raises `DataError` like `open_image`."""
    with watch.measure("decode"):
        image = pixels(data, where, max_pixels=max_pixels)
    with watch.measure("resize"):
        return _resize(image, side)


def _resize(image: np.ndarray, side: int) -> Tensor:
    """Resizes in the order of `image_files.square`: height first if it shrinks much more than the width."""
    height, width, _ = image.shape
    if (height, width) == (side, side):
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    owned = np.array(image, copy=not (image.flags.writeable and image.flags.c_contiguous), order="C")
    batch = torch.from_numpy(owned).permute(2, 0, 1)[None]
    if height > side and height - side > 2 * (width - side):
        batch = interpolate(batch, (side, width), mode="bicubic", antialias=True, align_corners=False)
    return interpolate(batch, (side, side), mode="bicubic", antialias=True, align_corners=False)[0].contiguous()
