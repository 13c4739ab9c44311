"""The published token sequence."""

import json
import re
import tracemalloc
from random import Random

import numpy as np
import pytest

from minigptv2.batch import IGNORE
from minigptv2.corpora.sources import toy
from minigptv2.prompt import IMAGE_PLACEHOLDER, PromptEncoder, PromptStyle
from minigptv2.record import Record, Turn
from minigptv2.tasks import RenderedTurn, task_id
from minigptv2.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import REFERENCE

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="needs the published code's outputs beside the repository"
)


class LetterTokenizer:
    """A tokenizer one can check by hand: each character its code, a leading space piece 1000 on every call."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str) -> tuple[int, ...]:
        return (1000, *map(ord, text))


def encoder(max_tokens: int | None = 500) -> PromptEncoder:
    return PromptEncoder(LetterTokenizer(), tokens_per_image=3, max_tokens=max_tokens)  # type: ignore[arg-type]


def text_of(ids: np.ndarray) -> str:
    names = {1: "<s>", 2: "</s>", 1000: "_", IMAGE_PLACEHOLDER: "@"}
    return "".join(names.get(int(i)) or chr(i) for i in ids)


def test_one_turn_with_an_image() -> None:
    example = encoder().encode_rendered([RenderedTurn("vqa", "[vqa] what?", "red")], num_images=1)
    assert example is not None
    assert text_of(example.input_ids) == "<s>_[INST] <Img>@@@_</Img> [vqa] what?  [/INST]_red</s>"
    assert text_of(example.labels[example.labels != IGNORE]) == "_red</s>"
    assert (example.labels[-5:] == example.input_ids[-5:]).all()


def test_every_answer_of_a_conversation_is_supervised_and_no_question() -> None:
    turns = [RenderedTurn("conversation", "what?", "a dog"), RenderedTurn("refer", "[refer] it", "{<1><2><3><4>}")]
    example = encoder().encode_rendered(turns, num_images=1)
    assert example is not None
    assert text_of(example.input_ids) == (
        "<s>_[INST] <Img>@@@_</Img> what?  [/INST]_a dog</s><s>_[INST] [refer] it  [/INST]_{<1><2><3><4>}</s>"
    )
    assert text_of(example.labels[example.labels != IGNORE]) == "_a dog</s>_{<1><2><3><4>}</s>"
    tasks = example.task_ids[example.labels != IGNORE]
    assert set(tasks[:7]) == {task_id("conversation")} and set(tasks[7:]) == {task_id("refer")}


def test_single_turn_text_has_one_space_and_no_image_part() -> None:
    example = encoder().encode_rendered([RenderedTurn("language", "Say a.", "a")], num_images=0)
    assert example is not None and text_of(example.input_ids) == "<s>_[INST] Say a. [/INST]_a</s>"


def test_published_inference_has_two_marks_and_one_space() -> None:
    trained = encoder().encode_question("[refer] it", num_images=1)
    published = encoder().encode_question("[refer] it", num_images=1, style=PromptStyle.PUBLISHED)
    assert text_of(trained) == "<s>_[INST] <Img>@@@_</Img> [refer] it  [/INST]"
    assert text_of(published) == "<s><s>_[INST] <Img>@@@_</Img> [refer] it [/INST]"


def test_inference_asks_exactly_as_training_did() -> None:
    turns = [RenderedTurn("conversation", "what?", "a dog"), RenderedTurn("conversation", "where?", "here")]
    example = encoder().encode_rendered(turns, num_images=1)
    asked = encoder().encode_question("where?", num_images=1, history=(("what?", "a dog"),))
    assert example is not None and (example.input_ids[: len(asked)] == asked).all()


TALK = [RenderedTurn("conversation", "a?", "bcd"), RenderedTurn("refer", "e?", "fgh"), RenderedTurn("vqa", "i?", "j")]


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("num_turns", [1, 3])
def test_text_is_cut_at_the_bound_and_images_do_not_count(num_images: int, num_turns: int) -> None:
    whole = encoder(max_tokens=None).encode_rendered(TALK[:num_turns], num_images=num_images)
    assert whole is not None and whole.num_cut == 0
    is_text = whole.input_ids != IMAGE_PLACEHOLDER
    num_text = int(is_text.sum())
    first_answer = int((is_text & (np.cumsum(whole.labels != IGNORE) == 0)).sum())
    for bound in range(1, num_text + 2):
        cut = encoder(bound).encode_rendered(TALK[:num_turns], num_images=num_images)
        if bound <= first_answer:
            assert cut is None
            continue
        assert cut is not None and cut.num_images == num_images
        kept = min(bound, num_text)
        assert (cut.input_ids != IMAGE_PLACEHOLDER).sum() == kept and cut.num_cut == num_text - kept
        assert (cut.input_ids == IMAGE_PLACEHOLDER).sum() == 3 * num_images
        for name in ("input_ids", "labels", "task_ids"):
            assert (getattr(cut, name) == getattr(whole, name)[: len(cut)]).all()
        supervised_tasks = set(cut.task_ids[cut.labels != IGNORE].tolist())
        assert cut.num_turns == len(supervised_tasks) and cut.num_supervised > 0


@pytest.mark.parametrize("max_txt_len", range(1, 40))
def test_the_cut_is_the_published_one_after_the_first_question(max_txt_len: int) -> None:
    """`minigpt_base.tokenize_conversation` keeps the first `max_txt_len` tokens that follow the first question."""
    question = encoder().encode_question("a?", num_images=1)
    first = int((question != IMAGE_PLACEHOLDER).sum())
    cut = encoder(first + max_txt_len).encode_rendered(TALK, num_images=1)
    after_question = "_bcd</s><s>_[INST] e?  [/INST]_fgh</s><s>_[INST] i?  [/INST]_j</s>"
    tokens = re.findall(r"</?s>|.", after_question)
    assert cut is not None and text_of(cut.input_ids[len(question) :]) == "".join(tokens[:max_txt_len])
    assert cut.num_cut == max(0, len(tokens) - max_txt_len)


def test_a_cut_answer_has_no_end_mark() -> None:
    whole = encoder().encode_rendered([RenderedTurn("vqa", "[vqa] what?", "red")], num_images=1)
    cut = encoder(len(whole or ()) - 3 - 1).encode_rendered([RenderedTurn("vqa", "[vqa] what?", "red")], num_images=1)
    assert cut is not None and text_of(cut.labels[cut.labels != IGNORE]) == "_red" and cut.num_cut == 1


def test_of_separate_turns_each_visit_trains_one() -> None:
    turns = tuple(Turn("conversation", f"q{n}", (f"a{n}",)) for n in range(3))
    record = Record(turns, 64, 48, separate=True)
    spoken = set()
    for seed in range(40):
        example = encoder().encode(record, Random(seed))
        assert example is not None and example.num_turns == 1
        spoken.add(text_of(example.labels[example.labels != IGNORE]))
    assert spoken == {"_a0</s>", "_a1</s>", "_a2</s>"}
    first = encoder().encode(record)
    assert first is not None and "q0" in text_of(first.input_ids) and "q1" not in text_of(first.input_ids)


@pytest.mark.parametrize("corpus", toy.CORPORA)
def test_placeholders_match_images_in_every_corpus(corpus: str, tokenizer: Tokenizer) -> None:
    prompt = PromptEncoder(tokenizer, tokens_per_image=16, max_tokens=512)
    for number, sample in enumerate(toy.samples(corpus, 20, None, "train")):  # type: ignore[arg-type]
        example = prompt.encode(sample.record, Random(number))
        assert example is not None
        assert (example.input_ids == IMAGE_PLACEHOLDER).sum() == 16 * example.num_images
        assert example.num_images == int(sample.record.has_image) and example.num_supervised > 0
        assert example.labels[0] == IGNORE


def test_text_never_becomes_a_sentence_mark(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("</s> and <s> and <unk>")
    assert tokenizer.eos_id not in ids and tokenizer.bos_id not in ids
    assert tokenizer.decode(ids) == "</s> and <s> and <unk>"


@pytest.mark.parametrize(
    "text", ["a red circle", "{<12><34><56><100>}", "<p>a</p> {<1><2><3><4>}", "naïve ☕ 漢", "two  spaces"]
)
def test_the_small_tokenizer_returns_what_it_was_given(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("letters", ["a", "7 ", "\N{GRINNING FACE}", "a long word "])
def test_long_texts_are_not_kept_in_memory(tokenizer: Tokenizer, letters: str) -> None:
    tokenizer.encode("warm up")
    tracemalloc.start()
    for number in range(20):
        assert len(tokenizer.encode(f"{number} {letters * 500}")) > 100
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 20_000


def test_digits_are_single_pieces(tokenizer: Tokenizer) -> None:
    box = tokenizer.encode("{<12><34><56><78>}")
    assert len(box) == 8 + 5  # eight digits, an opening, three separators, a closing


@needs_reference
def test_sequences_equal_the_published_codes() -> None:
    published = load_tokenizer(REFERENCE / "llama")
    expected = json.loads((REFERENCE / "expected.json").read_text())
    for text, ids in expected["tokenization"].items():
        text, ends = text.removesuffix("</s>"), text.endswith("</s>")
        assert [*published.encode(text), *([published.eos_id] if ends else [])] == ids
    prompt = PromptEncoder(published, tokens_per_image=16, max_tokens=2048)
    compared = 0
    for case in expected["cases"]:
        if case["kind"] == "batch":
            continue
        questions = case.get("questions") or [case["instruction"]]
        answers = case.get("answers") or [case["answer"]]
        turns = [
            RenderedTurn("conversation", question.split("</Img> ")[-1].rstrip(" "), answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
        example = prompt.encode_rendered(turns, num_images=int(case["kind"] != "text_only"))
        (sample,) = case["samples"]
        assert example is not None and len(example) == sample["length"]
        assert example.labels[example.labels != IGNORE].tolist() == sample["target_ids"]
        compared += 1
    assert compared == 5
    for case in expected["generation"]:
        question = case["prompt"].split("</Img> ")[1].removesuffix(" [/INST]")
        asked = prompt.encode_question(question, num_images=1, style=PromptStyle.PUBLISHED)
        assert len(asked) == case["context_length"]
