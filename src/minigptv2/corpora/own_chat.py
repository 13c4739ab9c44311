"""Reads a conversation of a user's file: `messages` of `role` and `content`, or `conversations` of `from` and `value`.

These are the formats of LLaVA, LLaMA-Factory, ms-swift, OpenAI and Qwen-VL. Several user messages in a row are one
question. A leading system message begins the first question, since the prompt has no place for it. Image marks are
counted against the images and removed. An error names the turn and the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minigptv2.corpora.own_image import Reference, as_json, cut, references, require_one
from minigptv2.errors import DataError
from minigptv2.record import Turn
from minigptv2.typed_marks import TypedText, answer_text, image_paths, split_identifier, without_image_marks

CONVERSATION_KEYS = ("conversations", "messages")
_ROLE_KEYS, _TEXT_KEYS = ("from", "role"), ("value", "content")
_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_ROLES = {
    "system": _SYSTEM,
    "human": _USER,
    "user": _USER,
    "gpt": _ASSISTANT,
    "assistant": _ASSISTANT,
    "model": _ASSISTANT,
}
_IGNORED = ("id", "name", "timestamp", "markdown", "refusal")
"""Keys of a message that say nothing about what is trained."""
_TRAINED = {"weight": (1, 1.0), "loss": (True, 1), "train": (True, 1)}
"""Keys of a message that say whether it is trained, and the values with which it is."""
_IMAGE_PARTS = ("image", "image_url", "input_image")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_HERE = "<image>"


@dataclass
class Message:
    """One message: who says it, its text with image marks, and images that it holds itself."""

    what: str
    """Its number, role and key, for errors."""
    role: str
    text: str
    images: list[Reference] = field(default_factory=list)

    @cached_property
    def typed(self) -> TypedText:
        """The text of a question without its image marks."""
        return without_image_marks(self.text, self.what)


@dataclass
class Conversation:
    """The turns of a conversation and its image."""

    turns: tuple[Turn, ...]
    image: Reference | None


def read_conversation(entry: dict[str, Any], key: str, images: list[Reference]) -> Conversation:
    """The conversation under `key` of an entry with the images of its other keys. Raises `DataError`."""
    listed = entry[key]
    if not isinstance(listed, list) or not listed or not all(isinstance(message, dict) for message in listed):
        raise DataError(
            f'{key} must be a list of {{"from": "human", "value": ...}}, {{"from": "gpt", "value": ...}}, or of '
            '{"role": "user", "content": ...}, {"role": "assistant", "content": ...}'
        )
    messages = [_message(message, number, key) for number, message in enumerate(listed, 1)]
    system = entry.get("system")
    if system:
        if not isinstance(system, str):
            raise DataError(f"system is {as_json(system)}; expected a text")
        messages.insert(0, Message("system", _SYSTEM, system))
    pairs = _pairs(messages)
    image = _image(pairs, images)
    kind = "conversation" if image is not None else "language"
    return Conversation(tuple(_turn(pair, kind, image is not None) for pair in pairs), image)


def holds_image(listed: Any) -> bool:
    """Whether a message of a conversation has an image among its parts, or in a mark of Qwen-VL."""
    for message in listed if isinstance(listed, list) else ():
        for content in (message.get(key) for key in _TEXT_KEYS) if isinstance(message, dict) else ():
            parts = content if isinstance(content, list) else ()
            if any(isinstance(part, dict) and part.get("type") in _IMAGE_PARTS for part in parts):
                return True
            if isinstance(content, str) and image_paths(content):
                return True
    return False


def _message(message: dict[str, Any], number: int, key: str) -> Message:
    what = f"{key}, turn {number}"
    role_key, text_key = (_only(message, keys, what) for keys in (_ROLE_KEYS, _TEXT_KEYS))
    given = message[role_key]
    role = _ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise DataError(f"{what}: {role_key} is {as_json(given)}, which cannot be trained; the roles are {known}")
    what = f"{what} ({given})"
    for name, value in message.items():
        if name in (role_key, text_key, *_IGNORED) or value in (None, "", [], {}):
            continue
        if name not in _TRAINED:
            raise DataError(f"{what}: unknown key '{cut(name)}': remove it, or put what it holds into {text_key}")
        if role == _ASSISTANT and value not in _TRAINED[name]:
            raise DataError(f"{what}: {name} is {as_json(value)}; every answer is trained: leave the entry out")
    text, images = _content(message[text_key], f"{what}: {text_key}")
    return Message(f"{what}: {text_key}", role, text, images)


def _only(message: dict[str, Any], keys: tuple[str, str], what: str) -> str:
    """The one key of two that a message has."""
    found = [key for key in keys if key in message]
    if len(found) != 1:
        raise DataError(f"{what}: expected one of the keys {' and '.join(keys)}, got {as_json(list(message))}")
    return found[0]


def _content(content: Any, what: str) -> tuple[str, list[Reference]]:
    """Text and images of a message, from a text or a list of parts. An image without a source is a mark."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise DataError(f"{what} is {as_json(content)}; expected a text, or a list of text and image parts")
    texts: list[str] = []
    images: list[Reference] = []
    for part in content:
        filled = {
            key: value for key, value in part.items() if value is not None and key not in ("index", "cache_control")
        }
        kind = filled.pop("type", None)
        if kind in _TEXT_PARTS and set(filled) == {"text"} and isinstance(filled["text"], str):
            texts.append(filled["text"])
        elif kind in _IMAGE_PARTS:
            filled.pop("detail", None)
            if len(filled) > 1:
                raise DataError(f"{what}: an image part has the keys {as_json(list(part))}; expected one source")
            images += [one for key, value in filled.items() for one in references(value, f"{what}.{key}")]
            texts += [] if filled else [_IMAGE_HERE]
        else:
            raise DataError(f"{what}: part {as_json(part)} is neither a text nor an image")
    return "\n".join(texts), images


@dataclass
class _Pair:
    """The messages of one question and the answer to it."""

    asked: list[Message]
    answered: Message


def _pairs(messages: list[Message]) -> list[_Pair]:
    """The questions with their answers. Raises `DataError` if a message has no place in this order."""
    pairs: list[_Pair] = []
    asked: list[Message] = []
    for number, message in enumerate(messages):
        if message.role == _SYSTEM and number > 0:
            raise DataError(f"{message.what} is a system message that does not begin the conversation")
        if message.role == _ASSISTANT:
            if not any(one.role == _USER for one in asked):
                raise DataError(f"{message.what} is an answer without a question")
            pairs.append(_Pair(asked, message))
            asked = []
        elif message.text.strip() or message.images:
            asked.append(message)
        elif message.role == _USER:
            raise DataError(f"{message.what} is empty")
    if asked or not pairs:
        where = f"{asked[-1].what} is a conversation" if asked else "it is a conversation"
        raise DataError(f"{where} without an answer to each question")
    return pairs


def _image(pairs: list[_Pair], given: list[Reference]) -> Reference | None:
    """The image of a conversation. Raises `DataError` if marks, images and turns disagree."""
    found, later = list(given), ""
    marks: list[str] = []
    for number, pair in enumerate(pairs):
        for message in pair.asked:
            typed = message.typed
            inside = [*message.images, *(one for path in typed.paths for one in references(path, message.what))]
            found += inside
            marks += [message.what] * (len(typed.marks) - len(typed.paths) + len(inside))
            if number > 0 and (typed.marks or inside):
                later = later or message.what
        if pair.answered.images:
            raise DataError(f"{pair.answered.what} has an image; only a question may")
    require_one(found, "the conversation")
    if len(marks) > len(found):
        several = "an image mark" if len(marks) == 1 else f"the first of {len(marks)} image marks"
        there = "1 image: a record has one image" if found else "no image: add image, or remove the mark"
        raise DataError(f"{marks[0]} has {several}, and there is {there}")
    if later:
        raise DataError(f"{later} has an image after the first question; a prompt begins with its image")
    return found[0] if found else None


def _turn(pair: _Pair, kind: str, has_image: bool) -> Turn:
    """The turn of a question and its answer. The system message comes after the question's identifier, if any."""
    texts = {_SYSTEM: list[str](), _USER: list[str]()}
    for message in pair.asked:
        texts[message.role] += filter(None, [message.typed.text.strip()])
    what = pair.asked[-1].what
    identifier, asked = split_identifier("\n".join(texts[_USER]), what, has_image=has_image)
    if not asked:
        raise DataError(f"{what} has no text beside marks: an empty question")
    system = [answer_text(text, pair.asked[0].what) for text in texts[_SYSTEM]]
    answer = answer_text(pair.answered.text, pair.answered.what)
    if not answer.strip():
        raise DataError(f"{pair.answered.what} is an empty answer")
    question = "\n".join([*system, asked])
    return Turn(kind, f"{identifier} {question}".strip(), (answer,))
