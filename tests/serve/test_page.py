"""Tests the events of the page without a browser: what a visitor keeps, and which examples are offered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from minigptv2.errors import DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.serve.batcher import Busy
from minigptv2.serve.config import Limits
from minigptv2.serve.page import ExampleQuestion, Page, load_examples
from minigptv2.serve.service import Service
from minigptv2.serve.session import ChatTurn, Session
from tests.serve.tiny import picture


def again(page: Page, session: Session) -> None:
    async def listen() -> None:
        async for _ in page.again(session, "half a question", 0.0, 4):
            pass

    asyncio.run(listen())


def test_regenerate_keeps_the_answer_until_another_one_starts(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise Busy("full")

    service = Service(predictor, "tiny", Limits(max_new_tokens=8))
    page = Page(service, [])
    session = Session(turns=[ChatTurn("one?", "1", "done"), ChatTurn("two?", "2", "done")])
    with monkeypatch.context() as patch:
        patch.setattr(service.batcher, "submit", full)
        again(page, session)
    assert [turn.answer for turn in session.turns] == ["1", "2"]
    again(page, session)
    assert [turn.question for turn in session.turns] == ["one?", "two?"]
    assert session.ticket and session.ticket.request.history == (("one?", "1"),)
    assert session.turns[1].answer == session.ticket.text and session.turns[1].state == "done"
    service.batcher.close()


def test_examples_are_read_as_predict_reads_them(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    lines = [
        {"image": ["a.png", "b.png"], "turns": [{"question": " what\u2028is it? "}]},
        {"image": [], "turns": [{"question": "hi"}]},
        {"image": "a.png", "turns": [{"question": "hi"}]},
    ]
    file = tmp_path / "examples.jsonl"
    file.write_text("\n" + "\n \n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    assert load_examples(file) == [
        ExampleQuestion("what\u2028is it?", data),
        ExampleQuestion("hi", None),
        ExampleQuestion("hi", data),
    ]
    file.write_text('\n{"image": 3, "turns": [{"question": "hi"}]}')
    with pytest.raises(DataError, match="examples.jsonl:2: expected"):
        load_examples(file)
