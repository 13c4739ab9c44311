"""Runs a server on a free local port in a thread, for tests over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import uvicorn

from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Request
from minigptv2.serve import app as app_module
from minigptv2.serve import service as service_module
from minigptv2.serve.batcher import Batcher, _Row
from minigptv2.serve.config import Access, ClientLimits, Limits
from minigptv2.serve.connections import server_config

NAME = "tiny"
Script = Callable[[Request], str]


def scripted(script: Script, slow_s: float = 0.0) -> type[Batcher]:
    """A batcher that computes every step with the model but outputs the text of `script`, one token per step."""

    class Scripted(Batcher):
        def _choose(self, rows: list[_Row], logits: torch.Tensor) -> None:
            tokenizer = self.predictor.tokenizer
            for number, row in enumerate(rows):
                ids = (*tokenizer.encode(script(row.ticket.request)), tokenizer.eos_id)
                logits[number, ids[min(len(row.ids), len(ids) - 1)]] = logits.max() + 100
            time.sleep(slow_s)
            super()._choose(rows, logits)

    return Scripted


@contextmanager
def running(
    predictor: Predictor,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    clients: ClientLimits | None = None,
    page: bool = False,
    script: Script | None = None,
    slow_s: float = 0.0,
    **options: Any,
) -> Iterator[str]:
    """The address of a server of `predictor`. With `script`, its answers are the texts of `script`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        if script:
            patch.setattr(service_module, "Batcher", scripted(script, slow_s))
        app = app_module.build_app(predictor, name=NAME, limits=limits, access=access, page=page, **options)
    config = server_config(
        app,
        replace(access or Access(), port=port),
        clients or ClientLimits(),
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
