"""Serves the chat page: the static files of `static/`, its settings, and the check of an image.

The conversation is kept in the browser, which asks by the chat-completions API. All files are read when the server
starts, so that no request opens one, and no request names one: images arrive as bytes inside the body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from minigptv2.corpora.sources import toy
from minigptv2.draw import PREDICTED_COLORS
from minigptv2.errors import DataError
from minigptv2.serve.config import MAX_TEMPERATURE
from minigptv2.serve.openai_api import parse_json
from minigptv2.serve.request_error import RequestError
from minigptv2.serve.service import Service
from minigptv2.serve.uploads import data_url, decode_data_url
from minigptv2.shards.image_header import parse_header
from minigptv2.tasks import BOX_TASK, TASKS, Task, render_turn

FILES = Path(__file__).with_name("static")
START = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
BOX_SLOT = "{box}"
"""The place of the box in the question of a task, for the browser to fill."""


@dataclass(frozen=True)
class ExampleQuestion:
    """A question to try, and the image file it is about, if any."""

    question: str
    image: bytes | None


def load_examples(file: Path | None) -> list[ExampleQuestion]:
    """The first questions and images of a JSON lines file in the format of `predict`, or four drawn scenes.

    Raises `DataError` for a line or an image that cannot be read.
    """
    if file is None:
        return _drawn_examples()
    examples = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            question, image = fields["turns"][0]["question"], fields.get("image")
            image = next(iter(image), None) if isinstance(image, list) else image
            data = (file.parent / image).read_bytes() if image else None
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            form = '{"image": "a.jpg", "turns": [{"question": ...}]}'
            raise DataError(f"{file}:{number}: expected {form}: {error}") from error
        examples.append(ExampleQuestion(str(question).strip(), data))
    return examples


def _drawn_examples() -> list[ExampleQuestion]:
    examples = []
    for corpus in ("grounding", "refer", "vqa", "detection"):
        sample = next(iter(toy.samples(corpus, 1, Path(), "val")))
        assert sample.image is not None, "the samples of these corpora have images"
        rendered = render_turn(sample.record.turns[0], sample.record.width or 1, sample.record.height or 1)
        examples.append(ExampleQuestion(rendered.question, sample.image))
    return examples


def page_settings(service: Service, examples: list[ExampleQuestion]) -> dict[str, Any]:
    """What the page needs to know: the name of the run, the tasks, the limits, the examples, the colors of boxes."""
    limits = service.limits
    return {
        "name": service.name,
        "tasks": [_task_settings(task) for task in TASKS.values() if task.identifier],
        "region_task": BOX_TASK.identifier,
        "box_slot": BOX_SLOT,
        "colors": PREDICTED_COLORS,
        "max_text": limits.max_text,
        "max_tokens": limits.max_new_tokens,
        "max_temperature": MAX_TEMPERATURE,
        "image_bytes": limits.max_body_mib * 2**20 * 3 // 4 - limits.max_text * 6,  # base64 takes a third more
        "examples": [
            {"question": example.question, "image": f"page/examples/{number}" if example.image else None}
            for number, example in enumerate(examples)
        ],
    }


def _task_settings(task: Task) -> dict[str, Any]:
    """The button of a task: its words, the identifier as tooltip, and the question that it starts."""
    about_region = task.query == "box"
    question = task.ask(BOX_SLOT) if about_region else task.ask().rstrip("?")
    return {
        "label": task.menu_label,
        "identifier": task.identifier,
        "question": question,
        "needs_region": about_region,
    }


def mount_page(app: FastAPI, service: Service, examples: Path | None) -> None:
    """Add the page at `/` and its files below `/page/`. Raises `DataError` for examples that cannot be read."""
    questions = load_examples(examples)
    for file in FILES.iterdir():
        path = "/" if file.name == START else f"/page/{file.name}"
        app.get(path)(_constant(file.read_bytes(), MEDIA_TYPES[file.suffix]))
    app.get("/page/settings.json")(
        _constant(json.dumps(page_settings(service, questions)).encode(), "application/json")
    )
    for number, example in enumerate(questions):
        if example.image:
            service.images.open(example.image)  # an image that visitors could not ask about is refused now
            header = parse_header(example.image)
            assert header is not None, "the image was opened"
            app.get(f"/page/examples/{number}")(_constant(example.image, f"image/{header.kind.lower()}"))

    parsing = asyncio.Semaphore(1)  # see `app`

    @app.post("/page/image")
    async def check_image(request: Request) -> Response:
        body = await request.body()
        async with parsing:
            fields = await asyncio.to_thread(parse_json, body)
        return JSONResponse(await _check_image(fields, service))


def _constant(content: bytes, media_type: str) -> Callable[[Request], Response]:
    """A route that answers with `content`. Browsers keep it and ask each time whether it has changed."""
    headers = {"cache-control": "no-cache", "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer


async def _check_image(fields: dict[str, Any], service: Service) -> dict[str, Any]:
    """The image in a request as the model sees it: upright, as a JPEG to show, with its size in pixels."""
    if list(fields) != ["image"] or not isinstance(fields["image"], str):
        raise RequestError('the body must be {"image": "data:image/png;base64,..."}', param="image")
    try:
        file = await asyncio.to_thread(decode_data_url, fields["image"])
        image = await service.open_image(file, to_show=True)
    except DataError as error:
        raise RequestError(str(error), param="image", code="invalid_image") from error
    assert image.shown is not None, "it was opened to be shown"
    return {"shown": data_url(image.shown), "width": image.width, "height": image.height}
