"""Tests that images are decoded a few at a time within a deadline, and never hold up a question without an image."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from minigptv2.predict.predictor import Predictor
from minigptv2.serve.batcher import Busy
from minigptv2.serve.config import Limits
from minigptv2.serve.decoding import DECODED_AT_ONCE, MAX_WAITING, DecodingPool
from minigptv2.serve.uploads import ImageStore, UploadedImage, data_url
from tests.images.making import chunk, encode, scene, with_chunk, with_scans
from tests.serve.running import NAME, running

FLAT = encode(Image.new("RGB", (3000, 2500), "gray"), "jpeg-progressive")


def ask(address: str, *content: Any) -> httpx.Response:
    body = {"model": NAME, "max_tokens": 2, "messages": [{"role": "user", "content": list(content)}]}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


def text(question: str = "what?") -> dict[str, Any]:
    return {"type": "text", "text": question}


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (with_scans(FLAT, 3000), "more than 100 scans"),
        (with_scans(encode(Image.new("L", (4000, 3000)), "jpeg-progressive"), 2000), "more than 100 scans"),
        (
            with_chunk(encode(scene(), "png"), b"tEXt", b"\0").replace(
                chunk(b"tEXt", b"\0"), chunk(b"tEXt", b"\0") * 200_000
            ),
            "chunks",
        ),
    ],
    ids=["scans", "gray scans", "png chunks"],
)
def test_six_costly_images_are_refused_and_hold_up_nothing(predictor: Predictor, data: bytes, cause: str) -> None:
    with running(predictor) as address, ThreadPoolExecutor(6) as clients:
        ask(address, text())
        began = time.monotonic()
        sent = [clients.submit(ask, address, image(data), text()) for _ in range(6)]
        assert ask(address, text()).status_code == 200
        replies = [one.result() for one in sent]
        assert time.monotonic() - began < 5
    assert all(reply.status_code == 400 and cause in reply.text for reply in replies)


def test_slow_images_do_not_hold_up_a_question_without_one(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    decode = ImageStore._decode

    def slow(self: ImageStore, data: bytes, to_show: bool) -> UploadedImage:
        release.wait(30)
        return decode(self, data, to_show)

    monkeypatch.setattr(ImageStore, "_decode", slow)
    files = [encode(scene(40 + number, 30)) for number in range(12)]
    with running(predictor) as address, ThreadPoolExecutor(len(files)) as clients:
        sent = [clients.submit(ask, address, image(file), text()) for file in files]
        time.sleep(0.3)
        try:
            assert ask(address, text()).status_code == 200
            assert not any(one.done() for one in sent)
        finally:
            release.set()
        assert [one.result().status_code for one in sent] == [200] * len(files)


class _Slow:
    """Stands in for the store of images: decoding takes until it is released, and is counted."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.running = self.most = self.done = 0
        self.lock = threading.Lock()

    def open(self, data: bytes, *, to_show: bool = False) -> bytes:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.release.wait(10)
        with self.lock:
            self.running -= 1
            self.done += 1
        return data


def _in_pool(work: Callable[[_Slow, DecodingPool], Any], deadline_s: float = 30.0) -> _Slow:
    store = _Slow()
    pool = DecodingPool(store, deadline_s=deadline_s)  # type: ignore[arg-type]  # stands in for a store
    try:
        asyncio.run(work(store, pool))
    finally:
        store.release.set()
        pool.close()
    return store


def test_few_images_are_decoded_at_once() -> None:
    async def work(store: _Slow, pool: DecodingPool) -> None:
        opened = [asyncio.ensure_future(pool.open(bytes([number]))) for number in range(8)]
        await asyncio.sleep(0.1)
        store.release.set()
        assert await asyncio.gather(*opened) == [bytes([number]) for number in range(8)]

    assert 1 <= _in_pool(work).most <= DECODED_AT_ONCE


def test_an_image_that_is_not_decoded_in_time_is_refused_and_never_begun() -> None:
    async def work(store: _Slow, pool: DecodingPool) -> None:
        late = await asyncio.gather(*(pool.open(b"x") for _ in range(6)), return_exceptions=True)
        assert all(isinstance(one, Busy) and "within 0.1 s" in str(one) for one in late)
        store.release.set()
        assert await pool.open(b"next") == b"next"

    assert _in_pool(work, deadline_s=0.1).done <= DECODED_AT_ONCE + 1


def test_more_images_than_may_wait_are_refused_at_once() -> None:
    async def work(store: _Slow, pool: DecodingPool) -> None:
        waiting = [asyncio.ensure_future(pool.open(b"x")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy, match=f"{MAX_WAITING} images wait"):
            await pool.open(b"one more")
        store.release.set()
        assert len(await asyncio.gather(*waiting)) == MAX_WAITING
        assert await pool.open(b"later") == b"later"

    _in_pool(work)


def test_a_busy_pool_is_an_answer_to_repeat(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(self: DecodingPool, file: bytes, *, to_show: bool = False) -> UploadedImage:
        raise Busy("32 images wait to be decoded: try again later")

    monkeypatch.setattr(DecodingPool, "open", busy)
    with running(predictor, limits=Limits()) as address:
        reply = ask(address, image(encode(scene())), text())
    assert reply.status_code == 429 and reply.json()["error"]["code"] == "busy"
