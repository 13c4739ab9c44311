"""Decodes images in threads of their own, so that requests without an image never wait for those with one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from minigptv2.cluster.processes import usable_cpus
from minigptv2.serve.batcher import Busy
from minigptv2.serve.uploads import ImageStore, UploadedImage

DECODED_AT_ONCE = 2
"""Images decoded at the same time, or one on a machine with fewer than four CPUs, which leaves one for the model. Each
temporarily takes up to 4 bytes per pixel."""
MAX_WAITING = 32
"""Images that are decoded or wait for it. Further ones are refused at once."""
DEADLINE_S = 30.0
"""The longest time from the arrival of an image to its pixels."""


class DecodingPool:
    """Decodes the images of requests, a few at a time, each within the deadline."""

    def __init__(self, images: ImageStore, *, deadline_s: float = DEADLINE_S) -> None:
        self._images, self._deadline_s = images, deadline_s
        self._threads = ThreadPoolExecutor(max(1, min(DECODED_AT_ONCE, usable_cpus() // 2)), "decode")
        self._pending = 0

    async def open(self, file: bytes, *, to_show: bool = False) -> UploadedImage:
        """The image in `file`. Raises `Busy` if too many wait or the deadline passes. Errors as in `ImageStore.open`.

        An image that has not begun when the deadline passes is never decoded.
        """
        if self._pending >= MAX_WAITING:
            raise Busy(f"{self._pending} images wait to be decoded: try again later")
        self._pending += 1
        decoded = asyncio.get_running_loop().run_in_executor(self._threads, self._decode, file, to_show)
        try:
            return await asyncio.wait_for(decoded, self._deadline_s)
        except TimeoutError as error:
            raise Busy(f"the image was not decoded within {self._deadline_s:g} s: try again later") from error
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Stop without decoding what waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, file: bytes, to_show: bool) -> UploadedImage:
        return self._images.open(file, to_show=to_show)
