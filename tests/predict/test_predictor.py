"""Tests batches, shared images, decoding, streaming and scoring with a tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from minigptv2.errors import ConfigError, DataError
from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.config import LoraConfig, ModelConfig
from minigptv2.model.export import assign_plain
from minigptv2.predict.predictor import Predictor
from minigptv2.predict.requests import Case, Decoding, Request
from minigptv2.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def predictor(tokenizer: Tokenizer) -> Predictor:
    config = ModelConfig(
        vision_encoder="tiny_vit", language_model="tiny_llama", lora=LoraConfig(r=4), trainable=["projector", "lora"]
    )
    model = build_model(config, tokenizer.vocab_size)
    fill_weights(model, [], None, assign_plain, seed=1)
    return Predictor(model.eval(), tokenizer)


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


A, B = noise(1), noise(2)
REQUESTS = [
    Request("[vqa] what is it?", (A,)),
    Request("[refer] give me the location of the small red circle in the picture", (B,)),
    Request("Say red twice."),
    Request("[vqa] and how many?", (A,), (("[vqa] what is it?", "a red circle"),)),
    Request("[vqa] what differs?", (A, B)),
    Request("[caption] Write a short caption.", (A,)),
]
SHORT = Decoding(max_new_tokens=8)


def test_a_batch_gives_the_answers_of_single_requests(predictor: Predictor) -> None:
    together = predictor.answer(REQUESTS, SHORT)
    assert together == [predictor.answer([request], SHORT)[0] for request in REQUESTS]
    assert together == predictor.answer(REQUESTS, SHORT, batch_size=2)
    assert len(set(together)) > 1


def test_an_image_of_several_questions_is_encoded_once(predictor: Predictor) -> None:
    encoded: list[int] = []
    handle = predictor.model.vision_encoder.register_forward_hook(
        lambda module, args, kwargs, output: encoded.append(kwargs["pixel_values"].shape[0]), with_kwargs=True
    )
    predictor.answer(REQUESTS, SHORT, batch_size=2)
    handle.remove()
    assert sum(encoded) == 2


def test_image_order_matters(predictor: Predictor) -> None:
    def first(images: tuple[Image.Image, ...]) -> tuple[tuple[int, float], ...]:
        return predictor.reply([Request("[vqa] what differs?", images)], SHORT, top=3)[0].next_top

    assert first((A, B)) != first((B, A)) != first((A, A))


def test_the_top_tokens_begin_with_the_chosen_one(predictor: Predictor) -> None:
    replies = predictor.reply(REQUESTS, Decoding(max_new_tokens=1), top=4)
    for request, reply in zip(REQUESTS, replies, strict=True):
        logits = [logit for _, logit in reply.next_top]
        assert len(logits) == 4 and logits == sorted(logits, reverse=True)
        assert predictor.tokenizer.decode([reply.next_top[0][0]]) == reply.text
        assert reply.context_length == len(
            predictor.encoder.encode_question(request.question, num_images=len(request.images), history=request.history)
        )


def test_sampling_is_seeded(predictor: Predictor) -> None:
    hot = [predictor.answer(REQUESTS, Decoding(8, temperature=1.5, top_p=0.95, seed=seed)) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]


def test_beam_search_finds_likelier_answers_than_greedy(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, made = predictor._generate, []

    def watched(embeddings: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        ids = generate(embeddings, *args, **kwargs)
        made.append((embeddings, ids[0]))
        return ids

    monkeypatch.setattr(predictor, "_generate", watched)
    likelier = 0
    for request in REQUESTS:
        for beams in (1, 8):
            predictor.answer([request], Decoding(4, beams=beams))
        means = []
        for embeddings, ids in made[-2:]:
            text = predictor.model.language_model.model.embed_tokens(ids)[None]
            with predictor.model.generating(), torch.no_grad():
                logits = predictor.model.language_model(inputs_embeds=torch.cat([embeddings, text], dim=1)).logits
            after = logits[0, embeddings.shape[1] - 1 : -1].log_softmax(-1)
            means.append(float(after.gather(1, ids[:, None]).mean()))
        assert means[1] >= means[0] - 1e-4
        likelier += means[1] > means[0] + 1e-3
    assert likelier


def test_invalid_decoding_options_are_refused(predictor: Predictor) -> None:
    nan, inf = float("nan"), float("inf")
    heats = [{"temperature": wrong} for wrong in (-1.0, 1e-45, nan, inf)]
    masses = [{"top_p": wrong} for wrong in (0.0, 1e-300, 1.1, nan)]
    for wrong in (*heats, *masses, {"beams": 0}, {"beams": 2, "temperature": 1.0}):
        with pytest.raises(ConfigError):
            Decoding(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be streamed"):
        next(predictor.stream(REQUESTS[0], Decoding(beams=2)))


def test_a_stream_is_the_answer_in_pieces(predictor: Predictor) -> None:
    compared = 0
    for seed in range(48):
        decoding, request = Decoding(6, temperature=1.0, seed=seed), REQUESTS[seed % len(REQUESTS)]
        answer = predictor.answer([request], decoding)[0]
        pieces = list(predictor.stream(request, decoding))
        assert len(pieces) <= 6
        if "\ufffd" not in answer:  # invalid UTF-8 may be known only at the end
            assert "".join(pieces) == answer
            compared += len(pieces) > 1
    assert compared > 3


def test_closing_a_stream_stops_the_model(predictor: Predictor) -> None:
    calls: list[int] = []
    handle = predictor.model.language_model.model.register_forward_hook(lambda *a: calls.append(1))
    stream = predictor.stream(REQUESTS[0], Decoding(900))
    next(stream)
    stream.close()
    handle.remove()
    assert len(calls) < 400


def test_a_stream_raises_the_error_of_the_model(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(predictor, "_generate", broken)
    with pytest.raises(RuntimeError, match="no more memory"):
        list(predictor.stream(REQUESTS[0]))


def test_packed_padded_and_single_scores_agree(predictor: Predictor) -> None:
    cases = [
        Case((("[vqa] what is it?", "red"),), (A,)),
        Case((("[refer] the circle", "{<12><34><56><100>}"), ("and the bar?", "it is blue and large")), (B,)),
        Case((("Say red twice.", "red red"),)),
        Case((("[vqa] what differs?", "the colour"),), (A, B)),
    ]
    packed = predictor.score(cases)
    others = [
        predictor.score(cases, layout="padded"),
        predictor.score(cases, batch_size=2),
        [predictor.score([case])[0] for case in cases],
        [predictor.score([case], layout="padded")[0] for case in cases],
    ]
    for other in others:
        for ours, theirs in zip(packed, other, strict=True):
            assert (ours.length, ours.target_ids) == (theirs.length, theirs.target_ids)
            assert ours.nll == pytest.approx(theirs.nll, abs=1e-5)
    for case, score in zip(cases, packed, strict=True):
        ends = [i for i, token in enumerate(score.target_ids) if token == predictor.tokenizer.eos_id]
        assert len(ends) == len(case.turns) and ends[-1] == len(score.target_ids) - 1
        assert score.loss == pytest.approx(sum(score.nll) / len(score.nll))


def test_a_prompt_that_is_too_long_is_refused(predictor: Predictor) -> None:
    long = "red " * 1100
    with pytest.raises(DataError, match="1024 positions of the model"):
        predictor.answer([Request(long)])
    with pytest.raises(DataError, match="longer than the 1024"):
        predictor.score([Case((("short", "a"), ("long", long)))])
