"""Tests that requests in the forms that ordinary clients send are answered, and the description of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from minigptv2.boxes import Box, iou, render_box
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.serve.config import Access, Limits
from minigptv2.serve.openai_api import ALLOWED_VALUES, IGNORED_FIELDS, KNOWN_FIELDS, parse_chat
from minigptv2.serve.openapi import openapi_document
from tests.browser.world import PLACES, draw_picture, find
from tests.serve.running import NAME, running
from tests.serve.test_protocol import GOOD, MODEL, SMALL, USER, ask, url_of
from tests.serve.tiny import picture

LIMITS = Limits(max_new_tokens=20)


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, limits=LIMITS) as address:
        yield address


def said(server: str, **change: Any) -> dict[str, Any]:
    """The answer to the good request with `change`."""
    reply = httpx.post(server + "/v1/chat/completions", json={**GOOD, **change}, timeout=60)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def conversation(*messages: dict[str, Any]) -> Any:
    return parse_chat({"model": NAME, "messages": list(messages)}, model=NAME, limits=Limits()).conversation


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("wanted", [21, 4096, 10**30, 32768.0])
def test_more_tokens_than_the_limit_are_the_limit(server: str, field: str, wanted: float) -> None:
    answer = said(server, **{"max_tokens": None, field: wanted})
    assert answer["usage"]["completion_tokens"] == 20 and answer["choices"][0]["finish_reason"] == "length"


def test_an_answer_ends_at_the_end_of_the_context(predictor: Predictor) -> None:
    room = predictor.model.max_positions
    used = len(predictor.prompt_ids(Request("7" * 900), Decoding(1)))
    with running(predictor, limits=Limits(max_new_tokens=10_000)) as address:
        messages = [{"role": "user", "content": "7" * 900}]
        answer = said(address, messages=messages, max_tokens=9_999)
        assert answer["usage"]["completion_tokens"] == room - used < 200
        assert answer["choices"][0]["finish_reason"] == "length"
        full = httpx.post(address + "/v1/chat/completions", json={**GOOD, "messages": [ask("7" * (1000 + room))]})
        assert full.status_code == 400 and full.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ALLOWED_VALUES)
def test_fields_that_ask_for_what_happens_anyway_are_accepted(server: str, name: str) -> None:
    expected = said(server)["choices"]
    for value in (*ALLOWED_VALUES[name], None):
        assert said(server, **{name: value})["choices"] == expected


@pytest.mark.parametrize(
    "change",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": True},
        {"max_tokens": 2.0, "seed": 3.0, "n": 1.0},
        {"seed": -1},
        {"temperature": 1e-45},
        {"temperature": 0.7, "top_p": 0},
        {"temperature": 0.7, "top_p": 1e-300},
        {"presence_penalty": 0.0, "frequency_penalty": -0.0},
        {"field_of_tomorrow": None},
        {"stop": [letter * 90 for letter in "abcdefghijklmnop"]},
    ],
    ids=str,
)
def test_forms_without_effect_are_accepted(server: str, change: dict[str, Any]) -> None:
    assert said(server, **change)["choices"] == said(server)["choices"]


SYSTEM = {"role": "system", "content": "Be brief."}
ECHOED = {**MODEL, "refusal": None, "boxes": [{"phrase": "", "box": [1, 2, 3, 4]}], "tool_calls": []}


@pytest.mark.parametrize(
    ("messages", "question", "history"),
    [
        ([SYSTEM, USER], "Be brief.\nhi", ()),
        ([{**SYSTEM, "role": "developer"}, SYSTEM, USER], "Be brief.\nBe brief.\nhi", ()),
        ([SYSTEM, ask("[vqa] how many?", SMALL)], "[vqa] Be brief.\nhow many?", ()),
        ([{**SYSTEM, "content": [{"type": "text", "text": "Be brief."}]}, USER], "Be brief.\nhi", ()),
        ([{**SYSTEM, "content": ""}, USER], "hi", ()),
        ([USER, SYSTEM], "Be brief.\nhi", ()),
        ([USER, MODEL, SYSTEM, USER], "Be brief.\nhi", (("hi", "ho"),)),
        ([USER, SYSTEM, MODEL, USER], "hi", (("Be brief.\nhi", "ho"),)),
        ([USER, USER], "hi\nhi", ()),
        ([USER, MODEL, MODEL, USER], "hi", (("hi", "ho\nho"),)),
        ([ask("", SMALL), ask("[vqa] how many?")], "[vqa] how many?", ()),
        (
            [{**USER, "name": "ann"}, {**MODEL, "refusal": None, "boxes": [], "tool_calls": []}, USER],
            "hi",
            (("hi", "ho"),),
        ),
    ],
)
def test_messages_become_questions_and_answers(
    messages: list[dict[str, Any]], question: str, history: tuple[tuple[str, str], ...]
) -> None:
    made = conversation(*messages)
    assert (made.question, made.history) == (question, history)


def test_a_system_message_is_part_of_the_prompt(server: str, predictor: Predictor) -> None:
    answer = said(server, messages=[SYSTEM, *GOOD["messages"]], max_tokens=20)  # type: ignore[misc]
    request = Request("[vqa] Be brief.\nwhat?", (picture(1),))
    assert answer["choices"][0]["message"]["content"] == predictor.answer([request], Decoding(20))[0]


def test_an_image_of_a_later_message_stands_in_its_turn(server: str, predictor: Predictor) -> None:
    other = url_of(picture(2))
    messages = [USER, MODEL, ask("<image> what?", SMALL), MODEL, ask("and now?", other)]
    made = conversation(*messages)
    assert made.images_by_turn == (0, 1, 1) and made.boxes_image == 1 and made.history[1] == ("what?", "ho")
    answer = said(server, messages=messages, max_tokens=20)
    request = Request("and now?", (picture(1), picture(2)), made.history, made.images_by_turn)
    assert answer["choices"][0]["message"]["content"] == predictor.answer([request], Decoding(20))[0]
    assert answer["usage"]["prompt_tokens"] == len(predictor.prompt_ids(request, Decoding(20)))
    ids = predictor.prompt_ids(request, Decoding(20)).tolist()
    first_answer = ids.index(predictor.tokenizer.eos_id)
    assert -1 not in ids[:first_answer] and ids.count(-1) == 2 * predictor.model.tokens_per_image


def test_boxes_refer_to_the_image_given_last(predictor: Predictor) -> None:
    def where(request: Request) -> str:
        box = find(request.images[-1], "green")
        assert box is not None
        return render_box(box, *request.images[-1].size)

    messages = [ask("what?", url_of(picture(1, (64, 20)))), MODEL, ask("[refer] the green one", url_of(draw_picture()))]
    with running(predictor, script=where) as address:
        client = openai.OpenAI(base_url=address + "/v1", api_key="x", max_retries=0)
        options: dict[str, Any] = {"model": NAME, "messages": messages}
        whole = client.chat.completions.create(**options).choices[0].message
        last = list(client.chat.completions.create(**options, stream=True))[-1].choices[0].delta
    for boxes in (whole.boxes, last.boxes):  # type: ignore[union-attr]
        assert iou(Box(*boxes[0]["box"]), PLACES["green"]) > 0.9


def test_another_method_is_answered_with_the_right_one(server: str) -> None:
    for method, path, allow in (
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/openapi.json", "GET"),
    ):
        reply = httpx.request(method, server + path)
        assert (
            reply.status_code == 405 and reply.headers["allow"] == allow and allow in reply.json()["error"]["message"]
        )


def test_the_description_names_every_field_and_every_route(server: str) -> None:
    document = httpx.get(server + "/openapi.json").json()
    assert document == openapi_document(NAME, LIMITS, has_password=False)
    fields = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert set(fields) == {*KNOWN_FIELDS, *ALLOWED_VALUES, *IGNORED_FIELDS}
    assert set(document["paths"]) == {"/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    for path, schema in (("/v1/models", "ModelList"), (f"/v1/models/{NAME}", "Model")):
        validator(document, schema).validate(httpx.get(server + path).json())
    validator(document, "ChatCompletion").validate(said(server))
    refused = httpx.post(server + "/v1/chat/completions", json={**GOOD, "n": 2}).json()
    validator(document, "Error").validate(refused)
    secured = openapi_document(NAME, LIMITS, has_password=True)
    assert secured["security"] == [{"password": []}] and secured["paths"]["/health"]["get"]["security"] == []


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({}, True),
        ({"messages": [SYSTEM, USER]}, True),
        ({"max_tokens": 10**9, "temperature": None, "stop": None, "top_k": -1, "field_of_tomorrow": None}, True),
        ({"messages": []}, False),
        ({"model": "gpt-4o"}, False),
        ({"max_tokens": 0}, False),
        ({"temperature": 3}, False),
        ({"n": 2}, False),
        ({"stop": ""}, False),
        ({"temprature": 1}, False),
        ({"messages": [{"role": "tool", "content": "x"}]}, False),
        ({"messages": [ask("x", "https://example.com/a.png")]}, False),
    ],
    ids=str,
)
def test_the_description_agrees_with_the_server(server: str, change: dict[str, Any], is_valid: bool) -> None:
    body = {**GOOD, **change}
    document = openapi_document(NAME, LIMITS, has_password=False)
    try:
        validator(document, "ChatCompletionRequest").validate(body)
    except ValidationError:
        assert not is_valid
    else:
        assert is_valid
    status = httpx.post(server + "/v1/chat/completions", json=body, timeout=60).status_code
    assert (status == 200) == is_valid


def test_a_page_of_an_allowed_origin_may_ask(predictor: Predictor) -> None:
    origin = "https://chat.example"
    with running(predictor, limits=LIMITS, access=Access(cors_origins=(origin,))) as address:
        ask_first = {"origin": origin, "access-control-request-method": "POST"}
        reply = httpx.options(address + "/v1/chat/completions", headers=ask_first)
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == origin
        foreign = httpx.options(address + "/v1/chat/completions", headers={**ask_first, "origin": "https://other"})
        assert foreign.status_code == 400 and "access-control-allow-origin" not in foreign.headers


def validator(document: dict[str, Any], schema: str) -> Draft202012Validator:
    """A validator of one schema of the description."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **json.loads(json.dumps(document))})
