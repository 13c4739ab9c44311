"""The server: one model behind the chat-completions protocol and, unless left out, the chat page, on one port."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from minigptv2.errors import DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Request as Question
from minigptv2.serve.access import ROUTES, App, Guard
from minigptv2.serve.batcher import Batcher, Busy, Ticket
from minigptv2.serve.config import Access, Limits
from minigptv2.serve.openai_api import Chat, Envelope, RequestError, boxes_of, parse_chat, parse_json, usage_of
from minigptv2.serve.prometheus import Metrics
from minigptv2.serve.uploads import Picture, PictureStore

log = logging.getLogger(__name__)
METRICS_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Service:
    """What the routes and the page share: the model's name, its batcher, the pictures, the limits, the figures."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.metrics = Metrics()
        self.started_at = int(time.time())
        self.batcher = Batcher(
            predictor, max_rows=limits.max_batch, max_waiting=limits.max_waiting, observe=self.metrics.step
        )
        self.pictures = PictureStore(predictor, max_megapixels=limits.max_megapixels)

    async def open(self, files: tuple[bytes, ...]) -> list[Picture]:
        """The pictures in `files`, decoded beside the event loop."""
        return [await asyncio.to_thread(self.pictures.open, data) for data in files]


def build_app(
    predictor: Predictor,
    *,
    name: str,
    limits: Limits | None = None,
    access: Access | None = None,
    page: bool = True,
    examples: Path | None = None,
) -> App:
    """The ASGI app. `name` is what clients call the model; `examples` a JSON lines file of questions for the page."""
    limits, access = limits or Limits(), access or Access()
    service = Service(predictor, name, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(title="minigptv2", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_protocol(app, service)
    if page:
        from minigptv2.serve.page import mount_page

        app = mount_page(app, service, examples)
    return Guard(app, access, max_body=limits.max_body_mib * 2**20)


def serve(
    predictor: Predictor, *, name: str, limits: Limits, access: Access, page: bool, examples: Path | None
) -> None:
    """Serve until interrupted."""
    import uvicorn

    app = build_app(predictor, name=name, limits=limits, access=access, page=page, examples=examples)
    address = f"http://{f'[{access.host}]' if ':' in access.host else access.host}:{access.port}"
    print(f"{name}: {f'page {address}/  ' if page else ''}API {address}/v1  (Ctrl-C ends)", flush=True)
    uvicorn.run(app, host=access.host, port=access.port, log_level="warning", timeout_graceful_shutdown=5)


def _add_protocol(app: FastAPI, service: Service) -> None:
    card = {"id": service.name, "object": "model", "created": service.started_at, "owned_by": "minigptv2"}

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        route = request.url.path if request.url.path in ROUTES.get(request.method, ()) else "other"
        service.metrics.requests.labels(route, error.status).inc()
        return JSONResponse(error.as_json(), status_code=error.status)

    @app.get("/health")
    async def health() -> Response:
        load = service.batcher.load
        body = {"status": "ok" if load.alive else "dead", "running": load.running, "waiting": load.waiting}
        return JSONResponse(body, status_code=200 if load.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(service.batcher), media_type=METRICS_FORMAT)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            raise RequestError(f"no model {name!r} here: this server has {service.name!r}", status=404, param="model")
        return JSONResponse(card)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await request.body()
        chat = parse_chat(await asyncio.to_thread(parse_json, body), model=service.name, limits=service.limits)
        return await _answer(request, chat, service)


async def _answer(request: Request, chat: Chat, service: Service) -> Response:
    try:
        pictures = await service.open(chat.images)
        question = Question(chat.question, tuple(picture.prepared for picture in pictures), chat.history)
        ticket = await asyncio.to_thread(service.batcher.submit, question, chat.decoding, stop=chat.stop)
    except Busy as error:
        raise RequestError(str(error), status=429, code="busy") from error
    except DataError as error:
        raise RequestError(str(error), param="messages") from error
    envelope = Envelope(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), service.name)
    size = (pictures[0].width, pictures[0].height) if pictures else (0, 0)
    service.metrics.requests.labels(request.url.path, 200).inc()
    if chat.stream:
        events = _events(ticket, chat, envelope, size, service)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    try:
        async for _ in pieces(ticket):
            if await request.is_disconnected():
                ticket.cancel()
    except Exception as error:
        raise RequestError("the model failed on this request; the server's log says more", status=500) from error
    finally:
        service.metrics.ended(ticket)
    usage = usage_of(ticket.prompt_tokens, ticket.completion_tokens)
    return JSONResponse(envelope.whole(ticket.text, _reason(ticket), _boxes(ticket, chat, size), usage))


async def _events(
    ticket: Ticket, chat: Chat, envelope: Envelope, size: tuple[int, int], service: Service
) -> AsyncIterator[str]:
    """The answer as server-sent events; a reader that goes away stops the model."""
    try:
        yield _event(envelope.chunk({"role": "assistant", "content": ""}))
        async for piece in pieces(ticket):
            yield _event(envelope.chunk({"content": piece}))
        yield _event(envelope.chunk({"boxes": _boxes(ticket, chat, size)}, _reason(ticket)))
        if chat.include_usage:
            yield _event(envelope.usage_chunk(usage_of(ticket.prompt_tokens, ticket.completion_tokens)))
    except Exception:
        log.exception("a stream failed")
        yield _event(RequestError("the model failed on this request; the server's log says more", status=500).as_json())
    finally:
        ticket.cancel()
        service.metrics.ended(ticket)
    yield "data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _boxes(ticket: Ticket, chat: Chat, size: tuple[int, int]) -> list[dict[str, Any]]:
    return boxes_of(ticket.text, *size) if chat.images else []


def _reason(ticket: Ticket) -> str:
    return "length" if ticket.finish_reason == "length" else "stop"


async def pieces(ticket: Ticket) -> AsyncIterator[str]:
    """The pieces of an answer, without holding a thread while waiting for them. Leaving early stops the model."""
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
