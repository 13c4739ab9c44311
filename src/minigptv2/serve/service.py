"""Answers requests with one model: what the API and the chat page share.

Image files go in as bytes and become prepared images. A request becomes a ticket of the batcher, whose answer arrives
in pieces. Parsing of requests and rendering of answers belong to `openai_api` and `page`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.serve.batcher import Batcher, Ticket
from minigptv2.serve.config import Limits
from minigptv2.serve.decoding import DecodingPool
from minigptv2.serve.prometheus import Metrics
from minigptv2.serve.uploads import ImageStore, UploadedImage


class Service:
    """One model with its name, limits, batcher, decoded images and metrics."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.metrics = Metrics()
        self.started_at = int(time.time())
        self.batcher = Batcher(
            predictor, max_rows=limits.max_batch, max_waiting=limits.max_waiting, observe=self.metrics.step
        )
        self.images = ImageStore(predictor, max_megapixels=limits.max_megapixels)
        self._decoding = DecodingPool(self.images)

    async def open_image(self, file: bytes, *, to_show: bool = False) -> UploadedImage:
        """The image in `file`. See `DecodingPool.open` for errors and `ImageStore.open` for `to_show`."""
        return await self._decoding.open(file, to_show=to_show)

    def close(self) -> None:
        """Stop the model and the decoding of images."""
        self._decoding.close()
        self.batcher.close()

    async def submit(self, request: Request, decoding: Decoding, *, stop: tuple[str, ...] = ()) -> Ticket:
        """Tokenize `request` in a thread and queue it. Raises `Busy` for a full queue and `DataError` if too long."""
        return await asyncio.to_thread(self.batcher.submit, request, decoding, stop=stop)

    def finish(self, ticket: Ticket) -> None:
        """Stop the model if the answer is not complete, and count the ticket. Call it once per ticket."""
        ticket.cancel()
        self.metrics.ended(ticket)


async def pieces(ticket: Ticket) -> AsyncIterator[str]:
    """Yield the pieces of an answer without blocking a thread. Leaving the iterator early stops the model.

    Raises the error of the model if the answer failed.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.set)

    ticket.listen(wake)
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            for piece in ticket.ready():
                if piece is None:
                    return
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
    finally:
        ticket.cancel()
