"""Parses chat-completions requests and builds their responses, as the OpenAI API defines them.

Fields that ask for what the model does anyway are accepted: a penalty of 0, one choice, no tools. Requests for features
that it does not have are refused with the reason, not ignored. Besides the text, answers hold their boxes as data, in
pixels of the image that was given last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minigptv2.errors import nearest
from minigptv2.predict.requests import MIN_TEMPERATURE, MIN_TOP_P, Decoding
from minigptv2.serve.config import MAX_TEMPERATURE, Limits
from minigptv2.serve.openai_messages import ChatConversation, parse_messages
from minigptv2.serve.request_error import RequestError, short

IGNORED_FIELDS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "request_id",
    "priority",
    "verbosity",
)
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
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Fields that are accepted with these values, or null, only. The later ones are those of vLLM and SGLang."""
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
MAX_STOPS, MAX_STOP_LENGTH = 16, 100
_TYPE_NAMES = {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class ChatRequest:
    """A valid request: the conversation and the options."""

    conversation: ChatConversation
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
            f"unknown model {short(body['model'])}: this server serves {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    options = _value(body, "stream_options", dict) or {}
    return ChatRequest(
        parse_messages(_value(body, "messages", list, required=True), limits),
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
            if value is None:
                continue
            hint = nearest(name[:80], KNOWN_FIELDS)
            raise RequestError(f"unknown field {short(name)}{hint}", param=name[:80], code="unknown_parameter")
        if value is not None and value not in ALLOWED_VALUES[name]:
            allowed = " or ".join(json.dumps(each) for each in ALLOWED_VALUES[name])
            raise RequestError(f"{name} must be {allowed}, got {short(value)}", param=name)


def _value(body: dict[str, Any], name: str, kind: type | tuple[type, ...], *, required: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        if required:
            raise RequestError(f"{name} is missing", param=name)
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = _TYPE_NAMES[kind] if isinstance(kind, type) else "a number"
        raise RequestError(f"{name} must be {expected}, got {short(value)}", param=name)
    return value


def _whole(body: dict[str, Any], name: str) -> int | None:
    """A whole number, also in the form 16.0."""
    value = _value(body, name, (int, float))
    if isinstance(value, float):
        if not value.is_integer():
            raise RequestError(f"{name} must be a whole number, got {short(value)}", param=name)
        value = int(value)
    return value


def _decoding(body: dict[str, Any], limits: Limits) -> Decoding:
    """The decoding options. More tokens than the limit are the limit, and the answer ends with the reason `length`."""
    given = [_whole(body, name) for name in ("max_completion_tokens", "max_tokens")]
    tokens = next((value for value in given if value is not None), limits.max_new_tokens)
    if tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, got {tokens}", param="max_tokens")
    temperature = _value(body, "temperature", (int, float)) or 0.0
    top_p = _value(body, "top_p", (int, float))
    top_p = 1.0 if top_p is None else top_p
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise RequestError(f"temperature must be 0 to {MAX_TEMPERATURE:g}, got {temperature}", param="temperature")
    if not 0 <= top_p <= 1:
        raise RequestError(f"top_p must be 0 to 1, got {top_p}", param="top_p")
    if temperature < MIN_TEMPERATURE or top_p < MIN_TOP_P:  # the most likely token, always
        temperature, top_p = 0.0, 1.0
    seed = _whole(body, "seed") or 0
    if not -(2**63) <= seed < 2**63:
        raise RequestError(f"seed must be a 64-bit integer, got {seed}", param="seed")
    return Decoding(min(tokens, limits.max_new_tokens), float(temperature), float(top_p), seed=seed % 2**63)


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
        raise RequestError(
            f"stop must be a text or up to {MAX_STOPS} texts, of 1 to {MAX_STOP_LENGTH} characters, got {short(stop)}",
            param="stop",
        )
    return tuple(stops)


def _is_stop(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_STOP_LENGTH


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
