"""Recognizes in a user's texts what the program adds itself: image marks, task identifiers and chat templates.

A mark that is trained as letters teaches the model to write it. So an image mark is removed and counted, the identifier
of the turn's own task is removed, and everything else is refused by name. Qwen-VL's boxes become boxes on our grid.
Builds of corpora and all ways to ask a model share these rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from minigptv2.boxes import Box, render_boxes
from minigptv2.damaged_text import checked
from minigptv2.errors import DataError, counted
from minigptv2.prompt import PROMPT_PARTS
from minigptv2.tasks import TASKS
from minigptv2.tasks.answers import bracket_in, render_phrase
from minigptv2.tasks.base import QUERY_SLOT

WRITTEN = "is written by the prompt"
_SUSPECT = re.compile("[<\\[{&#|\0\ufeff\ufffd]")
"""A text without any of these characters has no mark. Most texts have none, and the search costs little."""
_IMAGE_MARK = re.compile(
    r"(?:Picture\s*\d+\s*:\s*)?<img>\s*(?P<path>[^<>]*?)\s*</img>"  # Qwen-VL
    r"|<img>\s*<ImageHere>\s*</img>|<ImageHere>"  # MiniGPT
    r"|<\s*image\s*>\s*</\s*image\s*>|</?\s*image\s*>|&lt;image&gt;|<image[\s_-]?\d+>|<image[\s_-](?:placeholder|token|pad|soft_token|start|end)>"
    r"|</?img>|<IMG_CONTEXT>|<(?:start|end)_of_image>|\[IMG(?:_BREAK|_END)?\]"
    r"|<im_start>(?:\s*<im_patch>)*\s*<im_end>|<im_(?:start|end|patch)>"  # LLaVA
    r"|<\|vision_start\|>\s*(?:<\|image_pad\|>\s*)*<\|vision_end\|>|<\|image(?:_pad|_\d+)?\|>",
    re.IGNORECASE,
)
_EDGE = r"!\[[^\]\n]*\]\([^)\n]*\)|<img\s[^>]*>|\[image\]|\{\{?\s*image\s*\}?\}"
_IMAGE_AT_EDGE = re.compile(rf"^\s*(?:{_EDGE})|(?:{_EDGE})\s*$", re.IGNORECASE)
"""An image in Markdown or HTML, or a slot of a template, where a mark would be. Elsewhere it may be code."""
_OTHER_MEDIA = re.compile(
    r"<(?:video|audio|speech|sound|point_cloud)>|<\|(?:video|audio)(?:_pad|_\d+)?\|>", re.IGNORECASE
)
_TEMPLATE = re.compile(
    "|".join(map(re.escape, PROMPT_PARTS))
    + r"|<</?SYS>>|<\|[A-Za-z][A-Za-z0-9_]*\|>|^\s*<s>|</s>\s*$|###\s*(?:Human|Assistant):",
    re.IGNORECASE,
)
_IDENTIFIERS = {task.identifier.strip("[]").lower(): task.identifier for task in TASKS.values() if task.identifier}
_IDENTIFIER = re.compile(rf"\[\s*({'|'.join(map(re.escape, _IDENTIFIERS))})\s*\]", re.IGNORECASE)
_QWEN_BOX = r"<box>\s*\(\s*\d{1,4}\s*,\s*\d{1,4}\s*\)\s*,\s*\(\s*\d{1,4}\s*,\s*\d{1,4}\s*\)\s*</box>"
_QWEN_PHRASE = re.compile(rf"(?:<ref>(?P<phrase>[^<>]*)</ref>\s*)?(?P<boxes>(?:{_QWEN_BOX}\s*)+)")
_QWEN_NAME = re.compile(r"<ref>([^<>]*)</ref>")
_QWEN_SIDE = 1000
_OTHER_BOXES = re.compile(
    r"</?(?:ref|box|quad|bbox|ref-object|grounding)>|<\|/?(?:object_ref|box|quad|point)_(?:start|end)\|>"
    r"|<loc_?\d+>|<patch_index_\d+>"
    r"|\[\[\s*\d{1,4}(?:\s*,\s*\d{1,4}){3}(?:\s*;[\d\s,;]*)?\s*\]\]"  # CogVLM
    r"|\"bbox_2d\"\s*:",  # Qwen2.5-VL
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class TypedText:
    """A text without image marks. `marks` are those that were removed, `paths` the image paths inside Qwen-VL's."""

    text: str
    marks: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


def without_image_marks(text: str, what: str) -> TypedText:
    """The text of a question without its image marks. `what` names it in errors.

    Boxes of Qwen-VL are rewritten. Raises `DataError` for marks of other media, other boxes, and chat templates.
    """
    if _SUSPECT.search(text) is None:
        return TypedText(text)
    marks, paths = tuple(found[0] for found in _IMAGE_MARK.finditer(text)), tuple(image_paths(text))
    if marks:
        text = _without(_IMAGE_MARK, text)
    if found := _IMAGE_AT_EDGE.search(text):
        raise DataError(f"{what} contains '{found[0].strip()}' in the place of an image: give the image as image")
    return TypedText(_checked(text, what), marks, paths)


def asked_question(text: str, what: str, *, num_images: int, is_first: bool = True) -> str:
    """A whole question as it is asked: without image marks, and with its identifier, if any, spelled as it is trained.

    Raises `DataError`, which names the question as `what`, for marks without their image or after the first question,
    and for everything that the prompt writes itself.
    """
    typed = without_image_marks(text, what)
    require_images(typed, what, num_images)
    if typed.marks and not is_first:
        raise DataError(f"{what} has an image mark, and is not the first question; a prompt begins with its images")
    identifier, rest = split_identifier(typed.text, what, has_image=num_images > 0)
    if not rest and (identifier or typed.marks):
        raise DataError(f"{what} has no text beside marks: an empty question")
    return f"{identifier} {rest}".strip()


def require_images(typed: TypedText, what: str, num_images: int) -> None:
    """Raise `DataError` if a question has more image marks than images, or a mark that contains a path."""
    if len(typed.marks) <= num_images and not typed.paths:
        return
    several = f"the image mark '{typed.marks[0]}'" if len(typed.marks) == 1 else f"{len(typed.marks)} image marks"
    there = f"there {'is' if num_images == 1 else 'are'} {counted(num_images, 'images')}"
    if num_images == 0:
        there = "there is no image: add image, or remove the mark"
    elif typed.paths:
        there += ": name it under image"
    raise DataError(f"{what} has {several}, and {there}")


def image_paths(text: str) -> list[str]:
    """The image paths inside the marks of Qwen-VL in a text."""
    if "</img>" not in text.lower():
        return []
    return [path.strip() for path in (found["path"] for found in _IMAGE_MARK.finditer(text)) if path and path.strip()]


def answer_text(text: str, what: str) -> str:
    """A text that is trained as it is: an answer or a phrase. Raises `DataError` for a mark or an identifier in it."""
    if _SUSPECT.search(text) is None:
        return text
    if mark := _IMAGE_MARK.search(text):
        raise DataError(f"{what} contains the image mark '{mark[0]}', which only a question may: remove it")
    text = _checked(text, what)
    if found := _IDENTIFIER.search(text):
        raise DataError(f"{what} contains '{found[0]}', which {WRITTEN}: remove it")
    return text


def phrase_text(text: str, what: str) -> str:
    """A phrase that is trained with boxes after it. Raises `DataError` as `answer_text`, and for a bracket of boxes."""
    phrase = answer_text(text, what)
    if bracket := bracket_in(phrase):
        raise DataError(f"{what} contains '{bracket}', with which answers mark phrases and boxes: write it without")
    return phrase


def query_text(text: str, task: str, what: str, *, has_image: bool = True) -> str:
    """The query of a task without the task's identifier and wording, which the prompt writes.

    The question of a task without an identifier may begin with one, which is kept. Raises `DataError` for an identifier
    of another task, and for one that does not begin the text.
    """
    own, found = TASKS[task].identifier, _IDENTIFIER.match(text.strip())
    if not own:
        return " ".join(filter(None, split_identifier(text, what, has_image=has_image)))
    if found is not None:
        typed = _IDENTIFIERS[found[1].lower()]
        if typed != own:
            raise DataError(
                f"{what} begins with '{found[0]}', which {WRITTEN} of another task: remove it, or set task to "
                f"'{found[1].lower()}'"
            )
        text = _unwrapped(text.strip()[found.end() :].strip(), TASKS[task].instructions)
    if found := _IDENTIFIER.search(text):
        raise DataError(f"{what} contains '{found[0]}', which {WRITTEN}: remove it")
    return text


def split_identifier(text: str, what: str, *, has_image: bool) -> tuple[str, str]:
    """The identifier that begins a question of a conversation, spelled as the prompt spells it, and the rest.

    The identifier is empty if there is none. Raises `DataError` for an identifier elsewhere, and for one in a
    conversation without an image.
    """
    text, begin = text.strip(), ""
    if (found := _IDENTIFIER.match(text)) is not None:
        if not has_image:
            raise DataError(f"{what} begins with '{found[0]}', and there is no image: add image, or remove it")
        begin, text = _IDENTIFIERS[found[1].lower()], text[found.end() :].strip()
    if again := _IDENTIFIER.search(text):
        raise DataError(f"{what} contains '{again[0]}', which {WRITTEN}, if it does not begin the question: remove it")
    return begin, text


def _unwrapped(text: str, instructions: tuple[str, ...]) -> str:
    """The query in a text that is one of the task's wordings, else the text."""
    for instruction in sorted(instructions, key=len, reverse=True):
        before, slot, after = instruction.partition(QUERY_SLOT)
        if not slot or not (before + after).strip() or len(text) <= len(before) + len(after):
            continue
        if text.lower().startswith(before.lower()) and text.lower().endswith(after.lower()):
            return text[len(before) : len(text) - len(after)].strip()
    return text


def _checked(text: str, what: str) -> str:
    text = checked(text, what)
    if "<ref>" in text or "<box>" in text:
        text = _QWEN_NAME.sub(r"\1", _QWEN_PHRASE.sub(lambda found: _boxes(found, what), text))
    for pattern, problem in (
        (_OTHER_MEDIA, "marks a medium that is no image"),
        (_OTHER_BOXES, "is a box or name mark of another model, whose scale is not known"),
        (_TEMPLATE, f"belongs to a chat template, which {WRITTEN}"),
    ):
        if found := pattern.search(text):
            raise DataError(f"{what} contains '{found[0]}', which {problem}: remove it, or convert the entry")
    return text


def _boxes(found: re.Match[str], what: str) -> str:
    """The boxes of Qwen-VL, 0 to 1000 in both directions, and their phrase, as the answer of a task writes them."""
    boxes = []
    for box in re.findall(_QWEN_BOX, found["boxes"]):
        corners = Box(*map(float, re.findall(r"\d+", box)))
        if problem := corners.problem(_QWEN_SIDE, _QWEN_SIDE):
            raise DataError(f"{what} contains '{box}', a box of Qwen-VL on 0 to {_QWEN_SIDE}, which {problem}")
        boxes.append(corners)
    space = " " if found[0][-1:].isspace() else ""
    if found["phrase"] is None:
        return render_boxes(boxes, _QWEN_SIDE, _QWEN_SIDE) + space
    return render_phrase(found["phrase"].strip(), tuple(boxes), _QWEN_SIDE, _QWEN_SIDE) + space


def _without(pattern: re.Pattern[str], text: str) -> str:
    """The text without the marks. The space around one becomes a line end or a space between two texts."""
    kept, position = "", 0
    for found in [*pattern.finditer(text), None]:
        piece = text[position : found.start()] if found else text[position:]
        position = found.end() if found else position
        left, right = kept.rstrip(), piece.lstrip()
        between = kept[len(left) :] + piece[: len(piece) - len(right)]
        if left and right:
            between = "\n" if "\n" in between else " "
        kept = f"{left}{between}{right}" if left else right
    return kept.strip()
