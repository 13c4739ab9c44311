"""Keeps the memory of a server small while it runs: collects garbage, and gives freed memory back to the system.

Python collects objects that refer to each other once they are a quarter of all objects. With torch loaded this takes
minutes, and the garbage of a request holds its body. So the objects of the start are left out, and the others are
collected often, which is fast. The C library keeps freed memory for later, in each of its arenas: 30 MiB and more
after large requests in several threads. Only glibc has a call for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TRIM_EVERY_S = 10.0
"""A round takes some milliseconds."""


@asynccontextmanager
async def small_heap() -> AsyncIterator[None]:
    """Trim the heap again and again within the block."""
    gc.freeze()
    trimming = asyncio.create_task(_trim_regularly())
    try:
        yield
    finally:
        trimming.cancel()
        gc.unfreeze()


def trim_heap() -> None:
    """Collect garbage, and give unused memory of the C heap back if the C library is glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # releases the interpreter lock


async def _trim_regularly() -> None:
    while True:
        await asyncio.sleep(TRIM_EVERY_S)
        await asyncio.to_thread(trim_heap)
