"""Turns the messages of a chat-completions request into the conversation that the model was trained with.

The model knows questions with answers, and images at the beginning of a question. Messages of other shapes are brought
into this form: system messages become the beginning of a question, and consecutive messages of one role are joined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minigptv2.errors import DataError
from minigptv2.serve.config import Limits
from minigptv2.serve.request_error import RequestError, short
from minigptv2.serve.uploads import decode_data_url
from minigptv2.typed_marks import asked_question, split_identifier

MAX_MESSAGES = 200
ROLES = ("user", "assistant", "system", "developer")
MESSAGE_FIELDS = ("role", "content")
IGNORED_MESSAGE_FIELDS = ("name", "boxes", "refusal", "annotations", "reasoning", "reasoning_content")
"""Fields of a message that clients send back as they received them, and that have no effect."""


@dataclass(frozen=True)
class ChatConversation:
    """The question, the earlier turns, and the image files with the number of each turn, in order."""

    question: str
    history: tuple[tuple[str, str], ...]
    images: tuple[bytes, ...]
    images_by_turn: tuple[int, ...]

    @property
    def boxes_image(self) -> int:
        """The index of the image that boxes refer to: the first of the latest turn with images."""
        last = max((turn for turn, count in enumerate(self.images_by_turn) if count), default=0)
        return sum(self.images_by_turn[:last])


@dataclass
class _Turn:
    """The texts of one question, of its system messages and of its answer, and its image addresses."""

    system: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    @property
    def num_characters(self) -> int:
        return sum(map(len, (*self.system, *self.texts, *self.answers)))


def parse_messages(messages: list[Any], limits: Limits) -> ChatConversation:
    """The conversation in `messages`. Raises `RequestError` that names the message concerned."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages must hold 1 to {MAX_MESSAGES} messages, got {len(messages)}", param="messages")
    turns = _turns(messages)
    if (length := sum(turn.num_characters for turn in turns)) > limits.max_text:
        raise RequestError(
            f"{length} characters exceed the limit of {limits.max_text}",
            status=413,
            param="messages",
            code="context_length_exceeded",
        )
    urls = [url for turn in turns for url in turn.urls]
    if len(urls) > limits.max_images:
        raise RequestError(f"{len(urls)} images exceed the limit of {limits.max_images}", param="messages")
    try:
        images = tuple(decode_data_url(url) for url in urls)
    except DataError as error:
        raise RequestError(str(error), param="messages", code="invalid_image") from error
    if not turns[-1].texts:
        raise RequestError("the last message has no text", param="messages")
    questions = [_question(turns[: number + 1]) for number in range(len(turns))]
    answers = ["\n".join(turn.answers) for turn in turns[:-1]]
    return ChatConversation(
        questions[-1],
        tuple(zip(questions[:-1], answers, strict=True)),
        images,
        tuple(len(turn.urls) for turn in turns),
    )


def _turns(messages: list[Any]) -> list[_Turn]:
    """The messages as turns, all but the last with an answer."""
    turns: list[_Turn] = []
    system: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, text, urls = _message(message, where)
        asking = bool(turns) and not turns[-1].answers
        if role == "assistant":
            if not turns:
                raise RequestError(f"{where}: the first message must be from the user, got {role}", param=where)
            turns[-1].answers.append(text)
        elif role == "user":
            if not asking:
                turns.append(_Turn(system))
                system = []
            turns[-1].texts += [text] if text else []
            turns[-1].urls += urls
        elif text:
            (turns[-1].system if asking else system).append(text)
    if not turns or turns[-1].answers or system:
        raise RequestError("the last message must be from the user", param="messages")
    return turns


def _question(turns: list[_Turn]) -> str:
    """The question of the last turn without image marks: its identifier, its system messages, its text."""
    turn, what = turns[-1], f"user message {len(turns)}"
    num_images = sum(len(each.urls) for each in turns)
    first = len(turns) == 1 or bool(turn.urls)
    try:
        question = asked_question("\n".join(turn.texts), what, num_images=num_images, is_first=first)
        if not turn.system:
            return question
        identifier, text = split_identifier(question, what, has_image=num_images > 0)
        system = asked_question("\n".join(turn.system), f"the system message of {what}", num_images=0)
    except DataError as error:
        raise RequestError(str(error), param="messages") from error
    return f"{identifier} {system}\n{text}".strip()


def _message(message: Any, where: str) -> tuple[str, str, list[str]]:
    """The role, the text and the image addresses of a message."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise RequestError(f"{where} must have a role ({', '.join(ROLES)}) and content", param=where)
    for name, value in message.items():
        if name not in (*MESSAGE_FIELDS, *IGNORED_MESSAGE_FIELDS) and value not in (None, [], {}, ""):
            raise RequestError(f"{where}: the field {short(name)} is not supported", param=where)
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=where)
    texts, urls = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"].strip())
        elif kind == "image_url" and message["role"] == "user":
            address = part.get("image_url")
            url = address.get("url") if isinstance(address, dict) else None
            if not isinstance(url, str):
                raise RequestError(f"{where} must have image_url.url", param=where)
            urls.append(url)
        else:
            raise RequestError(f"{where}: parts of type {short(kind)} are not supported", param=where)
    text = " ".join(text for text in texts if text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: the text holds an unpaired surrogate", param=where) from error
    return message["role"], text, urls
