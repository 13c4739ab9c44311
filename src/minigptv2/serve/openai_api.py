"""Parses chat-completions requests and builds their responses, as the OpenAI API defines them.

Requests for features that the model does not have (tools, several choices, a system message) are refused with the
reason, not ignored. Besides the text, answers hold their boxes as data, in pixels of the first image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minigptv2.errors import DataError, MiniGPTv2Error, nearest
from minigptv2.predict.requests import MIN_TEMPERATURE, MIN_TOP_P, Decoding
from minigptv2.serve.config import MAX_TEMPERATURE, Limits
from minigptv2.serve.uploads import decode_data_url
from minigptv2.typed_marks import asked_question

IGNORED_FIELDS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that clients send and that have no effect."""
ALLOWED_VALUES: dict[str, tuple[Any, ...]] = {
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
"""Fields that are accepted with these values, or null, only."""
KNOWN_FIELDS = (
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
_TYPE_NAMES = {str: "a string", int: "a whole number", bool: "a boolean", list: "a list", dict: "an object"}


class RequestError(MiniGPTv2Error):
    """A refused request: the HTTP `status`, the reason, the field concerned (`param`), and an error `code`."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(_encodable(message))
        self.status, self.param, self.code = status, param and _encodable(param), code

    def as_json(self) -> dict[str, Any]:
        """The error in the form of the OpenAI API."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _encodable(text: str) -> str:
    """`text` with unpaired surrogates, which JSON can hold but UTF-8 cannot, written as escapes."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class ChatRequest:
    """A valid request: the question, the earlier turns, the image files of the first message, and the options."""

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
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    return document


def parse_chat(body: dict[str, Any], *, model: str, limits: Limits) -> ChatRequest:
    """The chat in `body` for the model named `model`. Raises `RequestError` naming the invalid field."""
    _check_fields(body)
    if _value(body, "model", str, required=True) != model:
        raise RequestError(
            f"unknown model {_short(body['model'])}: this server serves {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    history, question, images = _conversation(body, limits)
    options = _value(body, "stream_options", dict) or {}
    return ChatRequest(
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
        if name in KNOWN_FIELDS or name in IGNORED_FIELDS:
            continue
        if name not in ALLOWED_VALUES:
            hint = nearest(name[:80], KNOWN_FIELDS)
            raise RequestError(f"unknown field {_short(name)}{hint}", param=name[:80], code="unknown_parameter")
        if value is not None and value not in ALLOWED_VALUES[name]:
            allowed = " or ".join(json.dumps(each) for each in ALLOWED_VALUES[name])
            raise RequestError(f"{name} must be {allowed}, got {_short(value)}", param=name)


def _value(body: dict[str, Any], name: str, kind: type | tuple[type, ...], *, required: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        if required:
            raise RequestError(f"{name} is missing", param=name)
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = _TYPE_NAMES[kind] if isinstance(kind, type) else "a number"
        raise RequestError(f"{name} must be {expected}, got {_short(value)}", param=name)
    return value


def _short(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 80 else text[:80] + "..."


def _decoding(body: dict[str, Any], limits: Limits) -> Decoding:
    given = [_value(body, name, int) for name in ("max_completion_tokens", "max_tokens")]
    tokens = next((value for value in given if value is not None), limits.max_new_tokens)
    if not 1 <= tokens <= limits.max_new_tokens:
        raise RequestError(f"max_tokens must be 1 to {limits.max_new_tokens}, got {tokens}", param="max_tokens")
    temperature = _value(body, "temperature", (int, float)) or 0.0
    top_p = _value(body, "top_p", (int, float))
    seed = _value(body, "seed", int) or 0
    if not (temperature == 0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE):
        expected = f"0 or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise RequestError(f"temperature must be {expected}, got {temperature}", param="temperature")
    if not MIN_TOP_P <= (1 if top_p is None else top_p) <= 1:
        raise RequestError(f"top_p must be {MIN_TOP_P:g} to 1, got {top_p}", param="top_p")
    if not -(2**63) <= seed < 2**63:
        raise RequestError(f"seed must be a 64-bit integer, got {seed}", param="seed")
    return Decoding(tokens, float(temperature), 1.0 if top_p is None else float(top_p), seed=seed)


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and 0 < len(s) < 101 for s in stops):
        raise RequestError(
            f"stop must be a text or up to 4 texts, of 1 to 100 characters, got {_short(stop)}", param="stop"
        )
    return tuple(stops)


def _conversation(body: dict[str, Any], limits: Limits) -> tuple[tuple[tuple[str, str], ...], str, tuple[bytes, ...]]:
    """The earlier turns, the question, and the image files of the first message."""
    messages = _value(body, "messages", list, required=True)
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages must hold 1 to {MAX_MESSAGES} messages, got {len(messages)}", param="messages")
    texts: list[str] = []
    images: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, text, urls = _message(message, where)
        if role in ("system", "developer"):
            if text or urls:
                raise RequestError(
                    f"{where}: the model was trained without {role} messages; use the first user message",
                    param=where,
                )
            continue
        if role != ("assistant" if len(texts) % 2 else "user"):
            raise RequestError(
                f"{where}: user and assistant messages must alternate, the first and last from the user", param=where
            )
        if urls and texts:
            raise RequestError(f"{where}: only the first user message may have images", param=where)
        texts.append(text)
        images += urls
    if len(texts) % 2 == 0:
        raise RequestError("the last message must be from the user", param="messages")
    if not texts[-1]:
        raise RequestError("the last message has no text", param="messages")
    if (length := sum(map(len, texts))) > limits.max_text:
        raise RequestError(
            f"{length} characters exceed the limit of {limits.max_text}",
            status=413,
            param="messages",
            code="context_length_exceeded",
        )
    if len(images) > limits.max_images:
        raise RequestError(f"{len(images)} images exceed the limit of {limits.max_images}", param="messages")
    try:
        files = tuple(decode_data_url(url) for url in images)
    except DataError as error:
        raise RequestError(str(error), param="messages", code="invalid_image") from error
    questions = [_asked(text, number, len(files)) for number, text in enumerate(texts[::2])]
    return tuple(zip(questions[:-1], texts[1::2], strict=True)), questions[-1], files


def _asked(text: str, number: int, num_images: int) -> str:
    """A question without image marks and with its identifier as it is trained."""
    try:
        return asked_question(text, f"user message {number + 1}", num_images=num_images, is_first=number == 0)
    except DataError as error:
        raise RequestError(str(error), param="messages") from error


def _message(message: Any, where: str) -> tuple[str, str, list[str]]:
    """The role, the text and the image addresses of a message."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system", "developer"):
        raise RequestError(f"{where} must have a role (user or assistant) and content", param=where)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=where)
    texts, urls = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"].strip())
        elif kind == "image_url" and message["role"] == "user":
            address = part.get("image_url")
            url = address.get("url") if isinstance(address, dict) else None
            if not isinstance(url, str):
                raise RequestError(f"{where} must have image_url.url", param=where)
            urls.append(url)
        else:
            raise RequestError(f"{where}: parts of type {_short(kind)} are not supported", param=where)
    text = " ".join(text for text in texts if text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: the text holds an unpaired surrogate", param=where) from error
    return message["role"], text, urls


@dataclass(frozen=True)
class Envelope:
    """The fields that all parts of one response share, and the parts."""

    id: str
    created: int
    model: str

    def response(
        self, text: str, finish_reason: str, boxes: list[dict[str, Any]], usage: dict[str, int]
    ) -> dict[str, Any]:
        """The response that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None, "boxes": boxes}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A chunk of a streamed response."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk, for clients that ask for token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The token counts. Image tokens belong to the prompt."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
