"""Reads LLaVA-Instruct (conversation, detail, reasoning) and the multi-task conversations about images of COCO.

Source: Liu et al. 2023 (huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K). The multi-task conversations come
with MiniGPT-v2. License: CC BY 4.0, made with GPT-4: OpenAI's terms apply. Layout: a list (`id`, `image`,
`conversations` of `from` and `value`). `image` may contain a folder, or be missing and follow from `id`. Turns of the
multi-task conversations contain task identifiers and boxes on the grid, and are kept unchanged. Image marks are removed
by the rules of own conversations (`typed_marks`). Case and punctuation are kept: published training lower-cased them,
which contradicts the purpose of this data. Expected conversations: 56,681 (conversation), 23,240 (detail), 76,643
(reasoning).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from minigptv2.corpora.corpus import CorpusSpec
from minigptv2.corpora.draft import Draft, Rejected, clean
from minigptv2.corpora.raw import Raw, stream_json
from minigptv2.corpora.sources.coco import GET_IMAGES, image_paths, require_images
from minigptv2.errors import DataError
from minigptv2.record import Turn
from minigptv2.typed_marks import answer_text, asked_question

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


def turns_of(conversation: list[dict[str, Any]]) -> tuple[Turn, ...]:
    """The turns of a conversation about an image in LLaVA's format. Raises `DataError` with one of a few reasons."""
    if not conversation or len(conversation) % 2:
        raise DataError("conversation without an answer to each question")
    turns: list[Turn] = []
    for asked, answered in zip(conversation[::2], conversation[1::2], strict=True):
        if asked["from"] not in _ASKS or answered["from"] not in _ANSWERS:
            raise DataError("conversation that does not alternate between human and gpt")
        question = asked_question(asked["value"], "question", num_images=1, is_first=not turns)
        turns.append(Turn("conversation", question, (answer_text(answered["value"], "answer"),)))
    return tuple(turns)


def drafts(raw: Raw, split: str, *, files: tuple[str, ...]) -> Iterator[Draft | Rejected]:
    """One draft per conversation. A second one with the same id, image, first question and answer is left out."""
    require_images(raw)
    file = raw.find(*files)
    seen: dict[str, set[int]] = {}
    for number, entry in stream_json(file):
        name = str(entry.get("image") or entry["id"])
        key = clean(str(entry.get("id", number)))
        try:
            turns = turns_of(entry["conversations"])
        except DataError as error:
            yield Rejected(key, str(error))
            continue
        said = hash((name, turns[0].question, turns[0].answers))
        if said in seen.setdefault(key, set()):
            yield Rejected(key, "duplicate conversation")
            continue
        unique = f"{key}-{len(seen[key])}" if seen[key] else key
        seen[key].add(said)
        yield Draft(unique, turns, image_paths(raw, name), {"corpus": raw.corpus, "id": key})


_LICENSE = "CC BY 4.0, OpenAI terms (text), Flickr terms (pictures)"


def _row(name: str, title: str, file: str, conversations: int) -> CorpusSpec:
    return CorpusSpec(
        name=name,
        title=f"LLaVA-Instruct, {title}",
        drafts=partial(drafts, files=(f"llava/{file}",)),
        tasks=("conversation",),
        expected={"train": conversations},
        counted="conversations",
        license=_LICENSE,
        stages=(3,),
        download=f"{GET_IMAGES}. {file} from https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K in llava/",
        size="19 GB (COCO 2017)",
    )


CORPORA = (
    _row("llava_conversation", "conversation", "conversation_58k.json", 56_681),
    _row("llava_detail", "detail", "detail_23k.json", 23_240),
    _row("llava_reasoning", "reasoning", "complex_reasoning_77k.json", 76_643),
    CorpusSpec(
        name="multitask_conversation",
        title="multi-task conversation",
        drafts=partial(
            drafts,
            files=tuple(f"multitask_conversation/{n}_conversation.json" for n in ("multi_task", "multitask")),
        ),
        tasks=("conversation",),
        expected={"train": None},
        counted="conversations",
        license=_LICENSE,
        stages=(3,),
        download=f"{GET_IMAGES}. multi_task_conversation.json as https://github.com/Vision-CAIR/MiniGPT-4/blob/main/dataset/"
        "README_MINIGPTv2_FINETUNE.md says, in multitask_conversation/",
        size="19 GB (COCO)",
    ),
)
