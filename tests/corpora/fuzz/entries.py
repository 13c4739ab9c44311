"""Entries of JSON and JSON lines with one change each, read without a build: tasks and conversations."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigptv2.boxes import Box
from minigptv2.corpora.draft import finish
from minigptv2.corpora.formats import OwnEntry, format_of
from minigptv2.corpora.raw import Raw
from minigptv2.record import Region, Turn
from minigptv2.shards.image_files import IMAGE_EXTENSIONS
from minigptv2.tasks import TASKS
from tests.corpora.miniatures.files import jpeg, put
from tests.fuzzing import Found

IMAGES = [f"{n}.jpg" for n in range(5)]
WORDS = [
    "what",
    "is",
    "the",
    "color",
    "of",
    "größer",
    "card",
    "犬",
    "near",
    "x",
    "<",
    "3",
    "and",
    "(1,",
    "2)",
    "[0]",
    "?",
]
MARKS = ("<image>", "<Img><ImageHere></Img>", "<ImageHere>", "<|vision_start|><|image_pad|><|vision_end|>")
IDENTIFIERS = [task.identifier for task in TASKS.values() if task.identifier]
UNKNOWN_KEYS = ("img", "image_path", "picture", "photo", "Image", "image_file", "pixels_path", "media", "imgs")

Entry = dict[str, Any]


@dataclass
class Case:
    """An entry and what must come of it: its turns and image, or an error (`turns` None)."""

    entry: Entry
    turns: tuple[Turn, ...] | None
    image: str | None
    texts: list[tuple[Entry, str]] = field(default_factory=list)
    """Where questions are, the first one first: an object and its key."""
    answers: list[tuple[Entry, str]] = field(default_factory=list)
    mark: bool = False
    """Whether the first question has an image mark."""

    def refused(self) -> None:
        self.turns = None


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8))) + " a"


def conversation(rng: random.Random) -> Case:
    """A conversation in a random one of the known formats."""
    image = rng.choice([*IMAGES, None])
    asked = [(words(rng), words(rng)) for _ in range(rng.randint(1, 3))]
    kind = "language" if image is None else "conversation"
    turns = tuple(Turn(kind, question, (answer,)) for question, answer in asked)
    listed, role, text, human, gpt = rng.choice(
        [("conversations", "from", "value", "human", "gpt"), ("messages", "role", "content", "user", "assistant")]
    )
    messages: list[Entry] = []
    for question, answer in asked:
        messages += [{role: human, text: question}, {role: gpt, text: answer}]
    entry: Entry = {listed: messages}
    case = Case(entry, turns, image, [(m, text) for m in messages[::2]], [(m, text) for m in messages[1::2]])
    if image is not None:
        form = rng.choice(["image", "list", "images", "object", "tag", "part"])
        if form in ("image", "list", "images", "object"):
            case.mark = rng.random() < 0.8
            messages[0][text] = (f"{rng.choice(MARKS)}\n" if case.mark else "") + messages[0][text]
            value: Any = {"path": image} if form == "object" else [image] if form != "image" else image
            entry["images" if form in ("images", "object") else "image"] = value
        elif form == "tag":
            messages[0][text] = f"Picture 1: <img>{image}</img>\n{messages[0][text]}"
        else:
            messages[0][text] = [{"type": "image", "image": image}, {"type": "text", "text": messages[0][text]}]
            case.texts = case.texts[1:]
    return case


def task_entry(rng: random.Random) -> Case:
    """An entry of one task."""
    image, answer = rng.choice(IMAGES), words(rng)
    entry: Entry = {"image": image, "answer": answer}
    if rng.random() < 0.4:
        question = words(rng)
        entry |= {"task": "vqa", "question": question}
        return Case(entry, (Turn("vqa", question, (answer,)),), image, [(entry, "question")], [(entry, "answer")])
    if rng.random() < 0.5:
        entry["task"] = "caption"
        return Case(entry, (Turn("caption", None, (answer,)),), image, [], [(entry, "answer")])
    phrase, box = words(rng), [rng.randint(0, 20), rng.randint(0, 20), rng.randint(30, 60), rng.randint(30, 45)]
    entry = {"image": image, "task": "refer", "phrase": phrase, "boxes": box}
    turn = Turn("refer", regions=(Region((Box(*map(float, box)),), (phrase,)),))
    return Case(entry, (turn,), image, [(entry, "phrase")])


def nothing(case: Case, rng: random.Random) -> None:
    pass


def describe(case: Case, rng: random.Random) -> None:
    if not {"conversations", "messages"} & set(case.entry):
        case.refused()
    case.entry["model"] = "x"


def number_an_entry(case: Case, rng: random.Random) -> None:
    case.entry["id"] = rng.choice([7, "e7"])


def rename_the_image(case: Case, rng: random.Random) -> None:
    keys = [key for key in ("image", "images") if key in case.entry]
    if keys:
        case.entry[rng.choice(UNKNOWN_KEYS)] = case.entry.pop(keys[0])
        case.refused()


def lose_the_image(case: Case, rng: random.Random) -> None:
    keys = [key for key in ("image", "images") if key in case.entry]
    if keys and (case.mark or "task" in case.entry):
        case.entry[keys[0]] = rng.choice([None, []])
        case.refused()


def add_an_image(case: Case, rng: random.Random) -> None:
    keys = [key for key in ("image", "images") if key in case.entry]
    if keys:
        value = case.entry[keys[0]]
        other = rng.choice([one for one in IMAGES if one != case.image])
        case.entry[keys[0]] = [*(value if isinstance(value, list) else [value]), other]
        case.refused()


def embed_the_image(case: Case, rng: random.Random) -> None:
    if "image" in case.entry and case.image:
        data = base64.b64encode(jpeg(int(case.image[0]))).decode()
        case.entry["image"] = f"data:image/jpeg;base64,{data}"


def type_a_mark(case: Case, rng: random.Random) -> None:
    """In a question: allowed once, if there is an image and the text is the first one."""
    if not case.texts:
        return
    number = rng.randrange(len(case.texts))
    holder, key = case.texts[number]
    holder[key] = rng.choice(["{}\n{}", "{} {}"]).format(rng.choice(MARKS), holder[key])
    has_key = any(key in case.entry for key in ("image", "images"))
    if number > 0 or case.mark or not has_key:
        case.refused()


def type_a_mark_into_an_answer(case: Case, rng: random.Random) -> None:
    if case.answers:
        holder, key = rng.choice(case.answers)
        holder[key] = f"{rng.choice([*MARKS, *IDENTIFIERS, '[INST]', '<box>'])} {holder[key]}"
        case.refused()


def type_an_identifier(case: Case, rng: random.Random) -> None:
    """At the beginning of a query: that of its task, or, in a conversation about an image, any."""
    if not case.texts or case.turns is None:
        return
    number = rng.randrange(len(case.texts))
    holder, key = case.texts[number]
    identifier = rng.choice(IDENTIFIERS)
    if "task" in case.entry:
        if TASKS[case.entry["task"]].identifier != identifier:
            case.refused()
    elif case.image is None:
        case.refused()
    else:
        turns, number = list(case.turns), number + len(case.turns) - len(case.texts)
        old = turns[number]
        turns[number] = Turn(old.task, f"{identifier} {old.question}", old.answers)
        case.turns = tuple(turns)
    holder[key] = f"{identifier} {holder[key]}"


def change_a_type(case: Case, rng: random.Random) -> None:
    holders = [*case.texts, *case.answers]
    if holders:
        holder, key = rng.choice(holders)
        holder[key] = rng.choice([3, None, {"a": 1}, True, 1.5, [[]]])
        case.refused()


def damage_a_character(case: Case, rng: random.Random) -> None:
    holders = [*case.texts, *case.answers]
    if holders:
        holder, key = rng.choice(holders)
        holder[key] += rng.choice(["\ufffd", "\0", "\ud83d"])
        case.refused()


CHANGES: tuple[Callable[[Case, random.Random], None], ...] = (
    *(nothing, describe, number_an_entry, rename_the_image, lose_the_image, add_an_image, embed_the_image),
    *(type_a_mark, type_a_mark_into_an_answer, type_an_identifier, change_a_type, damage_a_character),
)


def fuzz(numbers: Iterable[int], seed: int, folder: Path) -> Found:
    """Each case is one entry with one change, in a file of its own in a random encoding and format."""
    for number, name in enumerate(IMAGES):
        put(folder / name, jpeg(number))
    found = Found()
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        case = rng.choice([conversation, conversation, task_entry])(rng)
        change = rng.choice(CHANGES)
        change(case, rng)
        found.by_change[change.__name__] += 1
        problem = _problem(case, rng, folder)
        if problem:
            found.wrong.append(f"case {number} ({change.__name__}): {problem}: {json.dumps(case.entry)}")
        found.kept, found.refused = found.kept + (case.turns is not None), found.refused + (case.turns is None)
    return found


def _problem(case: Case, rng: random.Random, folder: Path) -> str:
    suffix, encoding = rng.choice(
        [(".json", "utf-8"), (".json", "utf-16"), (".jsonl", "utf-8"), (".jsonl", "utf-8-sig")]
    )
    document = [case.entry] if suffix == ".json" else case.entry
    ascii_only = rng.random() < 0.5 or case.turns is None  # half a surrogate pair can only be escaped
    file = folder / f"my{suffix}"
    file.write_bytes(json.dumps(document, ensure_ascii=ascii_only).encode(encoding))
    (entry,) = format_of(file).read(file, Raw(folder, "my", ""))
    if case.turns is None:
        named = entry.problem and entry.name.startswith(("entry 1", "line 1"))
        return "" if entry.draft is None and named else f"accepted, expected an error: {entry.draft or entry.problem}"
    return _difference(case, entry, folder)


def _difference(case: Case, entry: OwnEntry, folder: Path) -> str:
    if entry.draft is None:
        return f"refused, expected a sample: {entry.problem}"
    sample, rejected = finish(entry.draft)
    if sample is None or rejected:
        return f"lost: {rejected}"
    if sample.record.turns != case.turns:
        return f"turns are {sample.record.turns}, expected {case.turns}"
    pixels = None if case.image is None else (folder / case.image).read_bytes()
    return "" if sample.image == pixels and sample.extension in IMAGE_EXTENSIONS else "another image"
