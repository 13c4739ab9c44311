"""Serves one model over HTTP: the chat-completions API and, optionally, the chat page, on one port."""

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
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse

from minigptv2.errors import DataError, TooLongError
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Request as Question
from minigptv2.predict.requests import boxes_as_json, grounded_phrases
from minigptv2.serve.access import ROUTES, App, Guard
from minigptv2.serve.batcher import Busy, Ticket
from minigptv2.serve.config import Access, ClientLimits, Limits
from minigptv2.serve.connections import server_config
from minigptv2.serve.heap import keep_heap_small
from minigptv2.serve.openai_api import ChatRequest, Envelope, parse_chat, parse_json, usage_of
from minigptv2.serve.openapi import openapi_document
from minigptv2.serve.request_error import RequestError
from minigptv2.serve.service import Service, pieces

log = logging.getLogger(__name__)
MODEL_FAILED = "the model failed on this request; see the log of the server"
METRICS_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


def build_app(
    predictor: Predictor,
    *,
    name: str,
    limits: Limits | None = None,
    access: Access | None = None,
    page: bool = True,
    examples: Path | None = None,
) -> App:
    """The ASGI app of the server.

    `name` is the model name for clients. `page` adds the chat page, and `examples` is a JSON lines file of questions
    for it. Raises `ConfigError` for limits that cannot be kept and `DataError` for unreadable examples.
    """
    limits, access = limits or Limits(), access or Access()
    service = Service(predictor, name, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        trimming = asyncio.create_task(keep_heap_small())
        yield
        trimming.cancel()
        await asyncio.to_thread(service.close)

    api = FastAPI(title="minigptv2", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_api(api, service, has_password=bool(access.password))
    if page:
        from minigptv2.serve.page import mount_page

        mount_page(api, service, examples)
    guarded = Guard(api, access, limits.bodies)
    if not access.cors_origins:
        return guarded
    return CORSMiddleware(
        guarded, allow_origins=access.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
    )


def serve(
    predictor: Predictor,
    *,
    name: str,
    limits: Limits,
    access: Access,
    clients: ClientLimits,
    page: bool,
    examples: Path | None,
) -> None:
    """Serve until interrupted."""
    import uvicorn

    app = build_app(predictor, name=name, limits=limits, access=access, page=page, examples=examples)
    address = f"http://{f'[{access.host}]' if ':' in access.host else access.host}:{access.port}"
    print(f"{name}: {f'page {address}/  ' if page else ''}API {address}/v1  (Ctrl-C stops)", flush=True)
    uvicorn.Server(server_config(app, access, clients, log_level="warning", timeout_graceful_shutdown=5)).run()


def _add_api(app: FastAPI, service: Service, *, has_password: bool) -> None:
    parsing = asyncio.Semaphore(1)  # a text with one emoji takes four times its bytes while it is parsed
    card = {"id": service.name, "object": "model", "created": service.started_at, "owned_by": "minigptv2"}
    document = openapi_document(service.name, service.limits, has_password=has_password)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        route = request.url.path if request.url.path in ROUTES.get(request.method, ()) else "other"
        service.metrics.requests.labels(route, error.status).inc()
        return JSONResponse(error.as_json(), status_code=error.status)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return await refused(request, RequestError(str(error), status=429, code="busy"))

    @app.get("/health")
    async def health() -> Response:
        load = service.batcher.load
        body = {"status": "ok" if load.alive else "dead", "running": load.running, "waiting": load.waiting}
        return JSONResponse(body, status_code=200 if load.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(service.batcher), media_type=METRICS_FORMAT)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            raise RequestError(
                f"unknown model {name!r}: this server serves {service.name!r}", status=404, param="model"
            )
        return JSONResponse(card)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await request.body()
        async with parsing:
            chat = await asyncio.to_thread(_parse, body, service)
        return await _answer(request, chat, service)


def _parse(body: bytes, service: Service) -> ChatRequest:
    return parse_chat(parse_json(body), model=service.name, limits=service.limits)


async def _answer(request: Request, chat: ChatRequest, service: Service) -> Response:
    talk = chat.conversation
    try:
        images = [await service.open_image(file) for file in talk.images]
        question = Question(talk.question, tuple(image.prepared for image in images), talk.history, talk.images_by_turn)
        ticket = await service.submit(question, chat.decoding, stop=chat.stop)
    except TooLongError as error:
        raise RequestError(str(error), param="messages", code="context_length_exceeded") from error
    except DataError as error:
        raise RequestError(str(error), param="messages") from error
    envelope = Envelope(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), service.name)
    shown = images[talk.boxes_image] if images else None
    size = (shown.width, shown.height) if shown else None
    service.metrics.requests.labels(request.url.path, 200).inc()
    if chat.stream:
        events = _events(ticket, chat, envelope, size, service)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    try:
        async for _ in pieces(ticket):
            if await request.is_disconnected():
                ticket.cancel()
    except Exception as error:
        raise RequestError(MODEL_FAILED, status=500) from error
    finally:
        service.finish(ticket)
    usage = usage_of(ticket.prompt_tokens, ticket.completion_tokens)
    return JSONResponse(envelope.response(ticket.text, _reason(ticket), _boxes(ticket, size), usage))


async def _events(
    ticket: Ticket, chat: ChatRequest, envelope: Envelope, size: tuple[int, int] | None, service: Service
) -> AsyncIterator[str]:
    """Yield the answer as server-sent events. The model stops if the client disconnects."""
    try:
        yield _event(envelope.chunk({"role": "assistant", "content": ""}))
        async for piece in pieces(ticket):
            yield _event(envelope.chunk({"content": piece}))
        yield _event(envelope.chunk({"boxes": _boxes(ticket, size)}, _reason(ticket)))
        if chat.include_usage:
            yield _event(envelope.usage_chunk(usage_of(ticket.prompt_tokens, ticket.completion_tokens)))
    except Exception:
        log.exception("failed to stream an answer")
        yield _event(RequestError(MODEL_FAILED, status=500).as_json())
    finally:
        service.finish(ticket)
    yield "data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _boxes(ticket: Ticket, size: tuple[int, int] | None) -> list[dict[str, Any]]:
    """The boxes of the answer in pixels of an image of `size`. None: there is no image and so no box."""
    return boxes_as_json(grounded_phrases(ticket.text, size)) if size else []


def _reason(ticket: Ticket) -> str:
    return "length" if ticket.finish_reason == "length" else "stop"
