"""Gives memory that is no longer used back to the system, while the server runs.

The C library keeps freed memory for later, in each of its arenas: 30 MiB and more after large requests in several
threads. Only glibc has a call for it. Other libraries give memory back by themselves or not at all.
"""

from __future__ import annotations

import asyncio
import ctypes

TRIM_EVERY_S = 10.0
"""A call takes about a millisecond."""


def trim_heap() -> None:
    """Give unused memory of the C heap back. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # releases the interpreter lock


async def keep_heap_small() -> None:
    """Trim the heap again and again, until cancelled."""
    while True:
        await asyncio.sleep(TRIM_EVERY_S)
        await asyncio.to_thread(trim_heap)
