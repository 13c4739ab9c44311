"""Tests the API with the unmodified OpenAI client, malformed requests, and many clients."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from minigptv2.boxes import Box, iou
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.serve.config import Limits
from tests.browser.world import PLACES, draw_picture, teacher
from tests.serve.running import NAME, running
from tests.serve.tiny import picture


def url_of(image: Image.Image, format: str = "PNG", **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def ask(text: str, image: str | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return {"role": "user", "content": parts}


SMALL = url_of(picture(1))


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[str]:
    with running(predictor, limits=Limits(max_new_tokens=300, max_text=4000, max_body_mib=2)) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server + "/v1", api_key="not needed", max_retries=0)


def test_the_client_gets_the_answer_of_the_model(client: openai.OpenAI, predictor: Predictor) -> None:
    history = [ask("[vqa] what is it?", SMALL), {"role": "assistant", "content": "a circle"}, ask("[vqa] how many?")]
    answer = client.chat.completions.create(model=NAME, messages=history, max_tokens=20)  # type: ignore[arg-type]
    request = Request("[vqa] how many?", (picture(1),), (("[vqa] what is it?", "a circle"),))
    assert answer.choices[0].message.content == predictor.answer([request], Decoding(20))[0]
    assert answer.usage is not None and answer.usage.prompt_tokens == len(predictor.prompt_ids(request, Decoding(20)))
    assert answer.usage.completion_tokens <= 20 and answer.choices[0].finish_reason in ("stop", "length")
    assert [model.id for model in client.models.list()] == [NAME] == [client.models.retrieve(NAME).id]


def test_the_client_streams_an_answer_with_its_boxes(predictor: Predictor) -> None:
    question = [ask("[refer] where is the green one?", url_of(draw_picture()))]
    with running(predictor, script=teacher) as address:
        client = openai.OpenAI(base_url=address + "/v1", api_key="x", max_retries=0)
        options: dict[str, Any] = {"model": NAME, "messages": question}
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        whole = client.chat.completions.create(**options)
    words = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert len(words) > 3 and "".join(words) == whole.choices[0].message.content  # type: ignore[arg-type]
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage == whole.usage
    for boxes in (chunks[-2].choices[0].delta.boxes, whole.choices[0].message.boxes):  # type: ignore[attr-defined]
        assert len(boxes) == 1 and iou(Box(*boxes[0]["box"]), PLACES["green"]) > 0.9


def test_the_client_sets_seed_temperature_and_stop_texts(client: openai.OpenAI) -> None:
    def said(**options: Any) -> str | None:
        messages: Any = [ask("tell me", SMALL)]
        return (
            client.chat.completions.create(model=NAME, messages=messages, max_tokens=30, **options)
            .choices[0]
            .message.content
        )

    hot = [said(temperature=1.2, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    greedy = said(temperature=0)
    assert greedy and said(stop=[greedy[5:8]]) == greedy[: greedy.index(greedy[5:8])]


GOOD = {"model": NAME, "messages": [ask("[vqa] what?", SMALL)], "max_tokens": 2}
USER, MODEL = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
MALFORMED: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": None}, 400, "messages is missing"),
    ({"messages": []}, 400, "got 0"),
    ({"messages": "hi"}, 400, "must be a list"),
    ({"messages": [{"content": "hi"}]}, 400, "must have a role"),
    ({"messages": ["hi"]}, 400, "must have a role"),
    ({"messages": [{"role": "user"}]}, 400, "must be a text or a list"),
    ({"messages": [{"role": "user", "content": ""}]}, 400, "has no text"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "are not supported"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "image_url.url",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
    ({"messages": [MODEL]}, 400, "must be from the user"),
    ({"messages": [MODEL, USER]}, 400, "first message must be from the user"),
    ({"messages": [USER, MODEL, {"role": "system", "content": "x"}]}, 400, "must be from the user"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "must be from the user"),
    ({"messages": [{"role": "system", "content": "x"}, ask("", SMALL)]}, 400, "has no text"),
    ({"messages": [{"role": "system", "content": "see <image>"}, ask("x", SMALL)]}, 400, "the system message of user"),
    (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": SMALL}}]}, USER]},
        400,
        "not supported",
    ),
    ({"messages": [USER, {**MODEL, "tool_calls": [{"id": "1"}]}, USER]}, 400, "tool_calls"),
    ({"messages": [USER, {"role": "assistant", "content": None}, USER]}, 400, "must be a text or a list"),
    ({"messages": [ask("x", SMALL), MODEL, ask("<image> and this?")]}, 400, "is not the first question"),
    ({"messages": [USER, MODEL]}, 400, "must be from the user"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "must have a role"),
    ({"messages": [ask("x", SMALL.replace("base64,", "base64,!!"))]}, 400, "not valid base64"),
    ({"messages": [ask("x", "data:image/png;base64,AAAA")]}, 400, "3 zero bytes"),
    ({"messages": [ask("x", "data:image/svg+xml;base64,AAAA")]}, 400, "does not download addresses"),
    ({"model": "gpt-4o"}, 404, "this server serves 'tiny'"),
    ({"model": None}, 400, "model is missing"),
    ({"model": 3}, 400, "must be a string"),
    ({"max_tokens": 0}, 400, "must be at least 1"),
    ({"max_tokens": 2.5}, 400, "must be a whole number"),
    ({"max_tokens": True}, 400, "must be a number"),
    ({"temperature": -1}, 400, "must be 0 to 2"),
    ({"temperature": "hot"}, 400, "must be a number"),
    ({"temperature": 2.5}, 400, "temperature must be 0 to 2, got 2.5"),
    ({"temperature": float("nan")}, 400, "temperature must be 0 to 2, got nan"),
    ({"top_p": float("nan")}, 400, "top_p must be 0 to 1, got nan"),
    ({"top_p": 10**400}, 400, "top_p must be 0 to 1"),
    ({"seed": 2**70}, 400, "64-bit integer"),
    ({"n": 2}, 400, "n must be 1"),
    ({"top_k": 5}, 400, "top_k must be -1 or 0"),
    ({"repetition_penalty": 1.2}, 400, "repetition_penalty must be 1"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty must be 0"),
    ({"tools": [{"type": "function"}]}, 400, "tools must be []"),
    ({"logprobs": True}, 400, "logprobs must be false"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format must be"),
    ({"stop": [""]}, 400, "up to 16"),
    ({"stop": ["a"] * 17}, 400, "up to 16"),
    ({"stream": "yes"}, 400, "must be a boolean"),
    ({"stream_options": 1}, 400, "must be an object"),
    ({"temprature": 1}, 400, "did you mean 'temperature'"),
    ({"\ud800": 1}, 400, "unknown field"),
    ({"messages": [{"role": "user", "content": "7" * 1100}]}, 400, "1024 positions of the model"),
    ({"messages": [{"role": "user", "content": "x" * 4001}]}, 413, "limit of 4000"),
    (
        {"messages": [{"role": "user", "content": ask("x", SMALL)["content"] * 5}]},
        400,
        "exceed the limit of 4",
    ),
]


@pytest.mark.parametrize(("change", "status", "reason"), MALFORMED, ids=lambda value: str(value)[:50])
def test_a_malformed_request_gets_the_reason(server: str, change: dict[str, Any], status: int, reason: str) -> None:
    body = json.dumps({**GOOD, **change})
    reply = httpx.post(
        server + "/v1/chat/completions", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert reply.status_code == status
    error = reply.json()["error"]
    assert reason in error["message"] and error["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 9_000])
def test_a_body_that_is_no_json_object_is_refused(server: str, body: bytes) -> None:
    reply = httpx.post(server + "/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and "JSON" in reply.json()["error"]["message"]


def test_fifty_clients_at_once_get_their_own_answers(client: openai.OpenAI, predictor: Predictor) -> None:
    requests = [Request(f"[vqa] how many {n}?", (picture(n % 7),)) for n in range(50)]

    def said(number: int) -> str | None:
        request = requests[number]
        options: Any = {"messages": [ask(request.question, url_of(request.images[0]))], "max_tokens": 16, "model": NAME}
        if number % 2:
            return client.chat.completions.create(**options).choices[0].message.content
        pieces = client.chat.completions.create(**options, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(said, range(50)))
    expected = predictor.answer(requests, Decoding(16))
    assert answers[1::2] == expected[1::2]
    for streamed, answer in zip(answers[0::2], expected[0::2], strict=True):
        assert streamed == answer or "\ufffd" in answer  # invalid UTF-8 from random weights is only known at the end


def test_a_full_server_answers_429_and_recovers(predictor: Predictor) -> None:
    def status(_: int) -> int:
        return httpx.post(address + "/v1/chat/completions", json=GOOD, timeout=60).status_code

    with running(predictor, limits=Limits(max_batch=1, max_waiting=2), script=teacher, slow_s=0.05) as address:
        with ThreadPoolExecutor(12) as pool:
            counted = list(pool.map(status, range(12)))
        assert set(counted) == {200, 429} and counted.count(200) >= 3
        assert status(0) == 200


def test_a_client_that_leaves_stops_the_model(server: str) -> None:
    body = {**GOOD, "max_tokens": 300, "stream": True}
    with httpx.stream("POST", server + "/v1/chat/completions", json=body, timeout=60) as reply:
        next(reply.iter_lines())
    for _ in range(600):
        if httpx.get(server + "/health").json()["running"] == 0:
            break
    metrics = httpx.get(server + "/metrics").text
    assert 'minigptv2_answers_total{reason="cancelled"}' in metrics or 'reason="stop"' in metrics
    assert httpx.get(server + "/health").json()["running"] == 0


def test_health_and_metrics_count_the_requests(server: str) -> None:
    assert httpx.post(server + "/v1/chat/completions", json=GOOD).status_code == 200
    assert httpx.get(server + "/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(server + "/metrics").text.splitlines() if not line.startswith("#")
    )
    assert float(lines['minigptv2_requests_total{route="/v1/chat/completions",status="200"}']) >= 1
    assert float(lines["minigptv2_generated_tokens_total"]) >= 1
    assert float(lines["minigptv2_running"]) == 0


def test_a_failing_model_is_a_500_and_the_server_continues(
    server: str, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("secret of the machine")

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "padded", broken)
        reply = httpx.post(server + "/v1/chat/completions", json=GOOD)
        assert reply.status_code == 500 and "secret" not in reply.text
        stream = httpx.post(server + "/v1/chat/completions", json={**GOOD, "stream": True})
        assert '"server_error"' in stream.text and "secret" not in stream.text
    assert httpx.post(server + "/v1/chat/completions", json=GOOD).status_code == 200
