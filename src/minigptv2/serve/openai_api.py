"""The chat-completions protocol: JSON in, a checked question out; an answer in, JSON out.

What the model cannot do (tools, several choices, a system message it was never trained on) is refused with the reason,
not ignored. Beside the text, answers carry their boxes as data, in pixels of the conversation's first image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minigptv2.errors import DataError, MiniGPTv2Error, nearest
from minigptv2.predict.requests import MIN_TEMPERATURE, MIN_TOP_P, Decoding
from minigptv2.serve.config import Limits
from minigptv2.serve.uploads import decode_data_url
from minigptv2.tasks import GroundedPhrase, segments

WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that clients send and that change nothing here."""
ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logit_bias": ({},),
}
"""Fields that are taken with these values (and null) alone."""
KNOWN = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
)
MAX_MESSAGES = 200


class RequestError(MiniGPTv2Error):
    """A request that is refused: HTTP `status`, the reason, and the field it is about."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(_encodable(message))
        self.status, self.param, self.code = status, param and _encodable(param), code

    def as_json(self) -> dict[str, Any]:
        """The error as clients of the protocol read it."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _encodable(text: str) -> str:
    """`text` with half surrogate pairs, which JSON can say and UTF-8 cannot, as escapes."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Chat:
    """A checked request: the question, earlier turns, image files of the first message, and how to answer."""

    question: str
    history: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...]
    decoding: Decoding
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `RequestError` for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError("the body is not a JSON object")
    return document


def parse_chat(body: dict[str, Any], *, model: str, limits: Limits) -> Chat:
    """The request that `body` makes of the model named `model`. Raises `RequestError` saying what is wrong where."""
    _check_fields(body)
    if _value(body, "model", str, required=True) != model:
        raise RequestError(
            f"no model {_short(body['model'])} here: this server has {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    history, question, images = _conversation(body, limits)
    options = _value(body, "stream_options", dict) or {}
    return Chat(
        question,
        history,
        images,
        _decoding(body, limits),
        _stops(body),
        stream=bool(_value(body, "stream", bool)),
        include_usage=bool(options.get("include_usage")),
    )


def _check_fields(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name in KNOWN or name in WITHOUT_EFFECT:
            continue
        if name not in ONLY_VALUE:
            hint = nearest(name[:80], KNOWN)
            raise RequestError(f"unknown field {_short(name)}{hint}", param=name[:80], code="unknown_parameter")
        if value is not None and value not in ONLY_VALUE[name]:
            allowed = " or ".join(json.dumps(each) for each in ONLY_VALUE[name])
            raise RequestError(f"{name}={_short(value)}: this model has only {allowed}", param=name)


def _value(body: dict[str, Any], name: str, kind: type | tuple[type, ...], *, required: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        if required:
            raise RequestError(f"{name} is missing", param=name)
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        raise RequestError(f"{name}={_short(value)}: want a {wanted}", param=name)
    return value


def _short(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 80 else text[:80] + "..."


def _decoding(body: dict[str, Any], limits: Limits) -> Decoding:
    asked = [_value(body, name, int) for name in ("max_completion_tokens", "max_tokens")]
    tokens = next((value for value in asked if value is not None), limits.max_new_tokens)
    if not 1 <= tokens <= limits.max_new_tokens:
        raise RequestError(f"max_tokens={tokens}: want 1 to {limits.max_new_tokens}", param="max_tokens")
    temperature = _value(body, "temperature", (int, float)) or 0.0
    top_p = _value(body, "top_p", (int, float))
    seed = _value(body, "seed", int) or 0
    if not (temperature == 0 or MIN_TEMPERATURE <= temperature <= 2):
        wanted = f"want 0 to 2, and {MIN_TEMPERATURE:g} or more if not 0"
        raise RequestError(f"temperature={temperature}: {wanted}", param="temperature")
    if not MIN_TOP_P <= (1 if top_p is None else top_p) <= 1:
        raise RequestError(f"top_p={top_p}: want more than 0 ({MIN_TOP_P:g}) and at most 1", param="top_p")
    if not -(2**63) <= seed < 2**63:
        raise RequestError(f"seed={seed}: want 64 bits", param="seed")
    return Decoding(tokens, float(temperature), 1.0 if top_p is None else float(top_p), seed=seed)


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and 0 < len(s) < 101 for s in stops):
        raise RequestError(f"stop={_short(stop)}: want a text or up to 4, of 1 to 100 characters", param="stop")
    return tuple(stops)


def _conversation(body: dict[str, Any], limits: Limits) -> tuple[tuple[tuple[str, str], ...], str, tuple[bytes, ...]]:
    """Earlier turns, the question, and the image files, which belong to the first message."""
    messages = _value(body, "messages", list, required=True)
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"{len(messages)} messages: want 1 to {MAX_MESSAGES}", param="messages")
    texts: list[str] = []
    images: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, text, urls = _message(message, where)
        if role in ("system", "developer"):
            if text or urls:
                raise RequestError(
                    f"{where}: the model was trained without {role} messages; say it in the first user message",
                    param=where,
                )
            continue
        if role != ("assistant" if len(texts) % 2 else "user"):
            raise RequestError(f"{where}: user and assistant take turns, the user first and last", param=where)
        if urls and texts:
            raise RequestError(f"{where}: images belong to the first user message", param=where)
        texts.append(text)
        images += urls
    if len(texts) % 2 == 0:
        raise RequestError("the last message is not the user's", param="messages")
    if not texts[-1]:
        raise RequestError("the last message asks nothing: it has no text", param="messages")
    if (length := sum(map(len, texts))) > limits.max_text:
        raise RequestError(f"{length} characters: at most {limits.max_text}", status=413, param="messages")
    if len(images) > limits.max_images:
        raise RequestError(f"{len(images)} images: at most {limits.max_images}", param="messages")
    try:
        files = tuple(decode_data_url(url) for url in images)
    except DataError as error:
        raise RequestError(str(error), param="messages", code="invalid_image") from error
    return tuple(zip(texts[0:-1:2], texts[1::2], strict=True)), texts[-1], files


def _message(message: Any, where: str) -> tuple[str, str, list[str]]:
    """Role, text and image addresses of one message."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system", "developer"):
        raise RequestError(f"{where}: want a role (user or assistant) and content", param=where)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestError(f"{where}.content: want a text or a list of parts", param=where)
    texts, urls = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"].strip())
        elif kind == "image_url" and message["role"] == "user":
            address = part.get("image_url")
            url = address.get("url") if isinstance(address, dict) else None
            if not isinstance(url, str):
                raise RequestError(f"{where}: want image_url.url", param=where)
            urls.append(url)
        else:
            raise RequestError(f"{where}: a part of type {_short(kind)} is not read here", param=where)
    text = " ".join(text for text in texts if text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: half a surrogate pair is no text", param=where) from error
    return message["role"], text, urls


def boxes_of(answer: str, width: int, height: int) -> list[dict[str, Any]]:
    """The boxes that `answer` speaks, as data: phrase, and [x1, y1, x2, y2] in pixels of the first image."""
    grounded = [piece for piece in segments(answer, width, height) if isinstance(piece, GroundedPhrase)]
    return [{"phrase": item.phrase, "box": [b.x1, b.y1, b.x2, b.y2]} for item in grounded for b in item.boxes]


@dataclass(frozen=True)
class Envelope:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str

    def whole(
        self, text: str, finish_reason: str, boxes: list[dict[str, Any]], usage: dict[str, int]
    ) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None, "boxes": boxes}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last piece, for clients that ask for token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts; image tokens belong to the prompt."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
