"""Writes miniatures of conversations and of instructions without an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpora.miniatures.files import coco, lines, put


def talk(*values: str, first: str = "human") -> list[dict[str, str]]:
    speakers = [first, "gpt"] * len(values)
    return [{"from": speaker, "value": value} for speaker, value in zip(speakers, values, strict=False)]


def llava(file: str, with_folder: bool = False) -> Callable[[Path], None]:
    """Conversations as `docs/Finetune_Custom_Data.md` of haotian-liu/LLaVA shows them."""

    def make(root: Path) -> None:
        coco(root, "train2017/9", "train2014/25")
        place = "coco/train2017/" if with_folder else ""

        def entry(number: int, conversation: list[dict[str, str]]) -> dict[str, Any]:
            return {"id": f"{number:012d}", "image": f"{place}{number:012d}.jpg", "conversations": conversation}

        rows = [
            entry(9, talk("<image>\nWhat is it?", "A dog, of course.", "Sure?", "Yes! It's a “dog”.")),
            entry(25, talk("Wo ist es?\n<image>", "Auf der Straße.")),
            entry(25, talk("Another?\n<image>", "Same id, other talk.")),
            entry(25, talk("Another?\n<image>", "Same id, other talk.")),
            entry(77, talk("<image>\nGone?", "Yes.")),
            entry(9, talk("<image>\nNo answer?")),
            entry(9, talk("<image>\nEmpty answer?", " ")),
            entry(9, talk("<image>\nWho speaks?", "I do.", first="gpt")),
        ]
        put(root / file, rows)

    return make


TALK_DROPPED = {
    "image file missing": 1,
    "empty answer": 1,
    "duplicate conversation": 1,
    "conversation without an answer to each question": 1,
    "conversation that does not alternate between human and gpt": 1,
}


def multitask(root: Path) -> None:
    """Conversations as MiniGPT-4's `multitask_conversation.py` reads them: the id names the picture."""
    coco(root, "train2014/9")
    rows = [
        {
            "id": "000000000009",
            "conversations": talk(
                "<image>\n[grounding] describe this", "<p>A dog</p> {<10><20><30><40>} runs.", "[vqa] color?", "brown"
            ),
        },
        {"id": "000000000077", "conversations": talk("<image>\n[refer] the cat", "{<1><2><3><4>}")},
    ]
    put(root / "multitask_conversation/multi_task_conversation.json", rows)


def unnatural(file: str) -> Callable[[Path], None]:
    """The fields that the README of orhonovich/unnatural-instructions describes, reformulations in the full data."""

    def make(root: Path) -> None:
        def instance(text: str, constraints: str | None, output: str) -> dict[str, Any]:
            return {"instruction_with_input": text, "input": "", "constraints": constraints, "output": output}

        rows: list[dict[str, Any]] = [
            {
                "instruction": "x",
                "instances": [instance("Say “Ja”.", "None.", "Ja"), instance("Count.", "In words.", "One.")],
            },
            {"instruction": "y", "instances": [instance("Say nothing.", None, "")]},
            {"instruction": "z", "instances": []},
        ]
        if file.startswith("full"):
            rows[0]["reformulations"] = [{**instance("Speak: “Ja”.", None, "Ja"), "instruction": "x in other words"}]
        put(root / "unnatural_instructions" / file, lines(rows) if file.endswith("l") else rows)

    return make
