"""Describes the API as an OpenAPI 3.1 document, from the same tables and limits that requests are checked with."""

from __future__ import annotations

from typing import Any

import minigptv2
from minigptv2.serve.config import MAX_TEMPERATURE, Limits
from minigptv2.serve.openai_api import ALLOWED_VALUES, IGNORED_FIELDS, MAX_STOP_LENGTH, MAX_STOPS
from minigptv2.serve.openai_messages import MAX_MESSAGES

Schema = dict[str, Any]

ERRORS = {
    "400": "The request is malformed, over a limit, or asks for what the model does not have.",
    "401": "The password is missing or wrong.",
    "404": "There is no such route or model.",
    "408": "The body arrived too slowly.",
    "413": "The body or the conversation is over its limit.",
    "414": "The path is over its limit.",
    "415": "The body is not JSON.",
    "421": "The host name is not one of this server.",
    "429": "The queue or the memory for bodies is full, or there were too many wrong passwords.",
    "431": "The headers are over their limit.",
    "500": "The model failed.",
}
"""The statuses of refused requests."""


def openapi_document(name: str, limits: Limits, *, has_password: bool) -> Schema:
    """The document of a server of the model named `name`."""
    chat = {
        "operationId": "createChatCompletion",
        "summary": "Answer the last message of a conversation",
        "requestBody": {"required": True, "content": _json(_ref("ChatCompletionRequest"))},
        "responses": {
            "200": {
                "description": "The answer, or with `stream` its pieces as server-sent events.",
                "content": {
                    **_json(_ref("ChatCompletion")),
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **_errors("400", "401", "404", "408", "413", "414", "415", "421", "429", "431", "500"),
        },
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "minigptv2",
            "version": minigptv2.__version__,
            "description": "Chat completions of one MiniGPT-v2 model, as the OpenAI API defines them.",
        },
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": _read("listModels", "The served model", _json(_ref("ModelList")))},
            "/v1/models/{model}": {
                "get": {
                    **_read("retrieveModel", "The served model, by its name", _json(_ref("Model")), "404"),
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                    ],
                }
            },
            "/health": {"get": _health()},
            "/metrics": {"get": _read("metrics", "Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}})},
        },
        "components": {"schemas": _schemas(name, limits)},
    }
    if has_password:
        document["components"]["securitySchemes"] = {"password": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"password": []}]
    return document


def _schemas(name: str, limits: Limits) -> dict[str, Schema]:
    return {
        "ChatCompletionRequest": _request(name, limits),
        "Message": _message(limits),
        "ChatCompletion": _completion(),
        "Box": _box(),
        "Usage": _object(
            prompt_tokens={"type": "integer"},
            completion_tokens={"type": "integer"},
            total_tokens={"type": "integer"},
        ),
        "Model": _object(
            id={"type": "string"},
            object={"const": "model"},
            created={"type": "integer"},
            owned_by={"type": "string"},
        ),
        "ModelList": _object(object={"const": "list"}, data={"type": "array", "items": _ref("Model")}),
        "Error": _object(
            error=_object(
                message={"type": "string"},
                type={"type": "string"},
                param={"type": ["string", "null"]},
                code={"type": ["string", "null"]},
            )
        ),
    }


def _request(name: str, limits: Limits) -> Schema:
    tokens = {
        "type": ["integer", "null"],
        "minimum": 1,
        "description": f"The most tokens of the answer. More than {limits.max_new_tokens}, or more than fit into the "
        "context of the model, are allowed: the answer is shorter and ends with the reason `length`.",
    }
    stop = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
    properties: dict[str, Schema] = {
        "model": {"type": "string", "enum": [name]},
        "messages": {"type": "array", "items": _ref("Message"), "minItems": 1, "maxItems": MAX_MESSAGES},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}}},
        "temperature": {
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": MAX_TEMPERATURE,
            "description": "0, the default, is greedy.",
        },
        "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "max_tokens": tokens,
        "max_completion_tokens": {**tokens, "description": "The same as `max_tokens`, and takes precedence."},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
        "stop": {
            "oneOf": [stop, {"type": "array", "items": stop, "maxItems": MAX_STOPS}, {"type": "null"}],
            "description": "The answer ends before the first of these texts.",
        },
    }
    for field, values in ALLOWED_VALUES.items():
        properties[field] = {"enum": [*values, None], "description": "Has no effect, and takes no other value."}
    for field in IGNORED_FIELDS:
        properties[field] = {"description": "Has no effect."}
    return {
        "type": "object",
        "required": ["model", "messages"],
        "properties": properties,
        "additionalProperties": {"type": "null"},
    }


def _message(limits: Limits) -> Schema:
    text = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    }
    image = {
        "type": "object",
        "required": ["type", "image_url"],
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {
                "type": "object",
                "required": ["url"],
                "properties": {"url": {"type": "string", "pattern": "^data:image/", "description": "A data URL."}},
            },
        },
    }
    return {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": {
                "oneOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"oneOf": [text, image]}},
                ],
            },
        },
        "description": "The first and the last message, but for system messages, are the user's. Consecutive messages "
        "of one role are joined, and system messages become the beginning of the next question. User messages may have "
        f"images, {limits.max_images} in all. Together the texts have at most {limits.max_text} characters.",
    }


def _completion() -> Schema:
    message = _object(
        role={"const": "assistant"},
        content={"type": "string"},
        refusal={"type": "null"},
        boxes={"type": "array", "items": _ref("Box"), "description": "The boxes in the text, as data."},
    )
    choice = _object(
        index={"const": 0}, message=message, finish_reason={"enum": ["stop", "length"]}, logprobs={"type": "null"}
    )
    return _object(
        id={"type": "string"},
        object={"const": "chat.completion"},
        created={"type": "integer"},
        model={"type": "string"},
        choices={"type": "array", "items": choice, "minItems": 1, "maxItems": 1},
        usage=_ref("Usage"),
    )


def _box() -> Schema:
    corners = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    return _object(
        phrase={"type": "string"},
        box={**corners, "description": "x1, y1, x2, y2 in pixels of the first image of the latest message with images"},
    )


def _health() -> Schema:
    state = _object(status={"enum": ["ok", "dead"]}, running={"type": "integer"}, waiting={"type": "integer"})
    operation = _read("health", "The load, or 503 if the model has ended", _json(state))
    operation["responses"]["503"] = {"description": "The thread of the model has ended.", "content": _json(state)}
    operation["security"] = []
    return operation


def _read(operation: str, summary: str, content: Schema, *errors: str) -> Schema:
    """An operation without parameters."""
    responses = {"200": {"description": summary, "content": content}, **_errors("401", "421", "429", "431", *errors)}
    return {"operationId": operation, "summary": summary, "responses": responses}


def _errors(*statuses: str) -> Schema:
    return {status: {"description": ERRORS[status], "content": _json(_ref("Error"))} for status in statuses}


def _object(**properties: Schema) -> Schema:
    """An object all of whose properties are required."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
