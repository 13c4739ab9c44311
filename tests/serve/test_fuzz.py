"""Tests that no request body crashes the parser: each is a chat or a `RequestError`.

The seed is 1. `FUZZ_EXAMPLES` sets the number of bodies of each kind.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minigptv2.serve.config import Limits
from minigptv2.serve.openai_api import ALLOWED_VALUES, KNOWN_FIELDS, parse_chat, parse_json
from minigptv2.serve.request_error import RequestError

LIMITS = Limits()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["data:image/png;base64,AAAA", "<Img><ImageHere></Img>", "[vqa] a", "\ud800"]
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"]) | VALUES},
    optional={"text": TEXTS | VALUES, "image_url": st.fixed_dictionaries({"url": TEXTS | VALUES}) | VALUES},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer"]) | VALUES},
    optional={"content": TEXTS | st.lists(PARTS, max_size=3) | VALUES},
)
CHATS = st.fixed_dictionaries(
    {"model": st.just("tiny") | VALUES, "messages": st.lists(MESSAGES, max_size=4) | VALUES},
    optional={name: VALUES for name in (*KNOWN_FIELDS, *ALLOWED_VALUES) if name not in ("model", "messages")},
)


def outcome(body: bytes) -> str:
    """What the parser makes of `body`. Any exception but `RequestError` fails the test."""
    try:
        parse_chat(parse_json(body), model="tiny", limits=LIMITS)
    except RequestError as error:
        json.dumps(error.as_json()).encode()
        assert 400 <= error.status < 500
        return "refused"
    return "accepted"


@seed(1)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(CHATS)
def test_no_chat_crashes_the_parser(body: dict[str, Any]) -> None:
    outcome(json.dumps(body).encode())


@seed(1)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_crash_the_parser(body: bytes) -> None:
    outcome(body)


@pytest.mark.parametrize(
    "value", ["1" * 5000, "1e999", "-1e999", "NaN", "[" * 5000, '{"a":' * 5000, "0." + "1" * 100_000]
)
@pytest.mark.parametrize("name", ["seed", "temperature", "max_tokens", "top_p", "n", "stop", "messages", "metadata"])
def test_extreme_values_are_refused(name: str, value: str) -> None:
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "hi"}}], "{name}": {value}}}'
    outcome(body.encode())
