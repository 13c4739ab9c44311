"""Tests that answers in a shared batch equal those of single requests, and that the limits hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from minigptv2.errors import ConfigError, DataError
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Decoding, Request
from minigptv2.serve import batcher as batcher_module
from minigptv2.serve.batcher import Batcher, Busy, Ticket, _Row, _sample
from tests.serve.tiny import picture

A, B = picture(1), picture(2)
REQUESTS = [
    Request("[vqa] what is it?", (A,)),
    Request("[refer] give me the location of the small red circle in the picture", (B,)),
    Request("Say red twice."),
    Request("[vqa] and how many?", (A,), (("[vqa] what is it?", "a red circle"),)),
    Request("[vqa] what differs?", (A, B)),
    Request("[caption] Write a short caption.", (A,)),
]


@pytest.fixture
def batcher(predictor: Predictor) -> Iterator[Batcher]:
    made = Batcher(predictor, max_rows=4, max_waiting=100)
    yield made
    made.close()


def whole(ticket: Ticket) -> str:
    """The complete answer. Without invalid UTF-8, which random weights can produce, it equals the joined pieces."""
    pieces = "".join(ticket)
    assert pieces == ticket.text or "\ufffd" in ticket.text
    return ticket.text


def test_shared_answers_are_those_of_single_requests(predictor: Predictor, batcher: Batcher) -> None:
    decodings = [Decoding(max_new_tokens=length) for length in (3, 17, 9, 30, 5, 12)]
    tickets = [batcher.submit(request, decoding) for request, decoding in zip(REQUESTS, decodings, strict=True)]
    tickets += [batcher.submit(request, decodings[0]) for request in REQUESTS]  # joins while others run
    answers = [whole(ticket) for ticket in tickets]
    alone = [predictor.answer([request], decoding)[0] for request, decoding in zip(REQUESTS, decodings, strict=True)]
    alone += [predictor.answer([request], decodings[0])[0] for request in REQUESTS]
    assert answers == alone and len(set(answers)) > 4
    for ticket in tickets:
        assert ticket.finish_reason in ("stop", "length") and ticket.text == ticket.text.strip()


def test_sampling_depends_on_its_own_seed_alone(batcher: Batcher) -> None:
    decoding = Decoding(12, temperature=1.3, top_p=0.9, seed=5)
    alone = whole(batcher.submit(REQUESTS[0], decoding))
    among = [batcher.submit(r, Decoding(12, temperature=1.0, seed=n)) for n, r in enumerate(REQUESTS)]
    again = batcher.submit(REQUESTS[0], decoding)
    assert whole(again) == alone
    assert len({whole(ticket) for ticket in among}) == len(REQUESTS)


def test_a_cancelled_answer_stops_and_the_others_continue(predictor: Predictor, batcher: Batcher) -> None:
    long = batcher.submit(REQUESTS[0], Decoding(900))
    other = batcher.submit(REQUESTS[1], Decoding(60))
    first = next(iter(long))
    long.cancel()
    whole_text = first + "".join(long)
    assert whole(other) == predictor.answer([REQUESTS[1]], Decoding(60))[0]
    assert long.finish_reason == "cancelled" and long.completion_tokens < 900
    assert len(long.text) == len(whole_text)


def test_an_answer_ends_before_a_stop_text(predictor: Predictor, batcher: Batcher) -> None:
    answer = predictor.answer([REQUESTS[1]], Decoding(30))[0]
    stop = answer[8:11]
    ticket = batcher.submit(REQUESTS[1], Decoding(30), stop=("never said", stop))
    assert whole(ticket) == answer[: answer.index(stop)] and ticket.finish_reason == "stop"


def test_a_full_queue_refuses_and_serves_in_order_of_arrival(predictor: Predictor) -> None:
    batcher = Batcher(predictor, max_rows=1, max_waiting=3)
    order: list[int] = []
    with predictor.lock:  # the model is locked, so that no step runs
        tickets = [batcher.submit(REQUESTS[2], Decoding(4)) for _ in range(4)]
        with pytest.raises(Busy, match="try again later"):
            batcher.submit(REQUESTS[2], Decoding(4))
    readers = [threading.Thread(target=lambda n=n, t=t: (whole(t), order.append(n))) for n, t in enumerate(tickets)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    ended = [ticket.ended_at for ticket in tickets]
    batcher.close()
    assert ended == sorted(ended) and sorted(order) == [0, 1, 2, 3]  # type: ignore[type-var]
    with pytest.raises(Busy, match="stopping"):
        batcher.submit(REQUESTS[2])


def test_an_invalid_request_is_refused_before_it_waits(batcher: Batcher) -> None:
    with pytest.raises(DataError, match="1024 positions of the model"):
        batcher.submit(Request("red " * 1100))
    with pytest.raises(ConfigError, match="beam search"):
        batcher.submit(REQUESTS[0], Decoding(beams=2))
    assert batcher.load.waiting == 0


def test_a_failing_step_fails_its_requests_and_the_next_are_served(
    predictor: Predictor, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(batcher, "_step", broken)
        with pytest.raises(RuntimeError, match="no more memory"):
            whole(batcher.submit(REQUESTS[0], Decoding(8)))
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "padded", broken)
        with pytest.raises(RuntimeError, match="no more memory"):
            whole(batcher.submit(REQUESTS[0], Decoding(8)))
    assert whole(batcher.submit(REQUESTS[0], Decoding(8))) == predictor.answer([REQUESTS[0]], Decoding(8))[0]
    assert batcher.load.alive


def test_requests_that_cannot_join_end_with_the_error(
    predictor: Predictor, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no more memory")

    for name in ("_join", "prompt_ids", "_generator"):
        with monkeypatch.context() as patch:
            with predictor.lock:
                ticket = batcher.submit(REQUESTS[0], Decoding(8))
                target = {"_join": batcher, "prompt_ids": predictor}.get(name, batcher_module)
                patch.setattr(target, name, broken)
            assert "no more memory" in str(ticket._pieces.get(timeout=10)) and ticket.finish_reason == "error", name
    assert whole(batcher.submit(REQUESTS[0], Decoding(8))) == predictor.answer([REQUESTS[0]], Decoding(8))[0]


def test_a_token_that_cannot_be_drawn_fails_its_row_alone(
    predictor: Predictor, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(logits: torch.Tensor, row: _Row) -> int:
        if len(row.ids) == 2:
            return int(torch.multinomial(logits * float("nan"), 1))
        return _sample(logits, row)

    monkeypatch.setattr("minigptv2.serve.batcher._sample", sample)
    with predictor.lock:  # all three start together
        good = [batcher.submit(REQUESTS[n], Decoding(8)) for n in (0, 1)]
        bad = batcher.submit(REQUESTS[2], Decoding(8, temperature=1.0))
    assert [whole(ticket) for ticket in good] == predictor.answer(REQUESTS[:2], Decoding(8))
    with pytest.raises(RuntimeError, match="probability"):
        whole(bad)
    assert bad.finish_reason == "error" and bad.completion_tokens == 2


def test_an_image_asked_about_twice_is_encoded_once(predictor: Predictor, batcher: Batcher) -> None:
    encoded: list[torch.Size] = []
    handle = predictor.model.vision_encoder.register_forward_hook(
        lambda module, args, kwargs, output: encoded.append(kwargs["pixel_values"].shape), with_kwargs=True
    )
    picture_c = picture(3)
    for _ in range(2):
        whole(batcher.submit(Request("[vqa] what?", (picture_c,)), Decoding(2)))
    handle.remove()
    assert [shape[0] for shape in encoded] == [1]
