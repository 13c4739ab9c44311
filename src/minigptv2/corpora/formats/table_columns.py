"""Decides which column of a table holds which key of an entry, by usual names or by `--columns`, and which task it is.

Columns that only describe a row are passed over and counted. Any other column without a key is an error.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from minigptv2.corpora.own_chat import CONVERSATION_KEYS
from minigptv2.corpora.own_entry import DESCRIPTIONS, DESCRIPTIONS_OF_IMAGES, KEYS, is_named_like_an_image
from minigptv2.corpora.own_image import IMAGE_KEYS, cut
from minigptv2.corpora.raw import Raw
from minigptv2.errors import ConfigError, DataError, nearest

UNUSED = "unused"
"""The key of `--columns` for columns that are left out."""
ROLES = (*KEYS, "system")
_DECIDING = ("question", "answer", "phrase", "boxes", "objects")
"""Keys that decide the task of a table without a column `task`."""
_USUAL = {
    "answer": ("answers", "caption", "captions", "sentences", "text", "multiple_choice_answer"),
    "image": ("file_name", "image_file_name"),
}
"""Usual names of the columns of a key, beside the key itself. Those of the image are of image folders."""
_SHORT_FORMS = {"multiple_choice_answer": "answers"}
"""Columns that repeat what another column says in full."""
_DESCRIPTIONS = frozenset({*DESCRIPTIONS, "answer_type", "__index_level_0__"} - {"task"})
_TASKS = {
    ("question", "answer"): ("vqa", "language"),
    ("answer",): ("caption", ""),
    ("objects",): ("detection", ""),
}
"""Keys of a table to the task of its rows, with and without an image."""


@dataclass(frozen=True)
class Columns:
    """The column of each key, the task of rows that do not state one, and the columns that are passed over."""

    of_key: dict[str, str]
    task: str
    passed_over: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """Keys that every row must have a value for."""
        if not self.task:
            return ()
        return tuple(key for key in (*IMAGE_KEYS, *_DECIDING) if key in self.of_key)

    @property
    def used(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys((*self.of_key.values(), *self.passed_over)))


def columns_of(names: Collection[str], images: Collection[str], raw: Raw, *, in_folder: bool = False) -> Columns:
    """What the columns of a table are for. `images`: columns whose type is that of images. `in_folder`: the table
    describes the images of a folder by their file names.

    Raises `DataError` for a column that would be lost and for columns of which no task is known.
    """
    given, left_out = _given(names, raw)
    free = [name for name in names if name not in left_out and name not in given.values()]
    of_key = {**{key: key for key in ROLES if key in free and key not in given}, **given}
    has_conversation = any(key in of_key for key in CONVERSATION_KEYS)
    if in_folder:
        _take_image(of_key, free)
    if not has_conversation:
        _take_answer(of_key, free, raw)
    has_image = any(key in of_key for key in IMAGE_KEYS)
    rest = [name for name in free if name not in of_key.values()]
    passed_over = tuple(name for name in rest if _is_passed_over(name, name in images, has_image, of_key, raw))
    unknown = [name for name in rest if name not in passed_over]
    if unknown:
        raise DataError(_unknown(unknown, images, of_key, names))
    task = "" if has_conversation or "task" in of_key else _task_of(of_key, names, has_image)
    return Columns(of_key, task, passed_over)


def _given(names: Collection[str], raw: Raw) -> tuple[dict[str, str], set[str]]:
    """The keys that `--columns` gives a column, and the columns that it leaves out."""
    left_out = {name for key, name in raw.columns if key == UNUSED}
    given: dict[str, str] = {}
    for key, name in raw.columns:
        if key not in (*ROLES, UNUSED):
            raise ConfigError(
                f"--columns: unknown key '{key}'{nearest(key, ROLES)} The keys are {', '.join(ROLES)}, {UNUSED}"
            )
        if name not in names:
            raise DataError(f"no column '{cut(name)}', which --columns names; the columns are {_listed(names)}")
        if key != UNUSED and given.setdefault(key, name) != name:
            raise ConfigError(f"--columns gives '{key}' two columns, {given[key]} and {name}: give one")
    for name in left_out:
        raw.note(f"column '{cut(name)}' is not used, as --columns says")
    return given, left_out


def _take_image(of_key: dict[str, str], free: list[str]) -> None:
    """Take the column of file names as the image. Raises `DataError` if there is none, or several."""
    if any(key in of_key for key in IMAGE_KEYS):
        return
    named = [name for name in free if name == "file_name" or name.endswith("_file_name")]
    usual = [name for name in named if name in _USUAL["image"]] or named
    if len(usual) != 1:
        found = f"the columns {_listed(usual)} name files" if usual else "no column file_name names the images"
        raise DataError(f"{found}: name the one with the image with --columns image=COLUMN")
    of_key["image"] = usual[0]


def _take_answer(of_key: dict[str, str], free: list[str], raw: Raw) -> None:
    """Take the usual column of answers or captions. Raises `DataError` if there are several."""
    usual = [name for name in _USUAL["answer"] if name in free and name not in of_key.values()]
    if "answer" in of_key:
        return
    usual = [name for name in usual if _SHORT_FORMS.get(name) not in usual]
    if len(usual) > 1:
        raise DataError(
            f"the columns {_listed(usual)} may each be the answer: choose one, for example with --columns "
            f"answer={usual[0]}"
        )
    if usual:
        of_key["answer"] = usual[0]


def _is_passed_over(name: str, is_image: bool, has_image: bool, of_key: dict[str, str], raw: Raw) -> bool:
    if is_image:
        return False
    other_answers = "answer" in of_key and name in ("answer", *_USUAL["answer"])
    described = name in _DESCRIPTIONS or has_image and name in DESCRIPTIONS_OF_IMAGES
    return described or other_answers or raw.ignore_extra and not is_named_like_an_image(name)


def _unknown(unknown: list[str], images: Collection[str], of_key: dict[str, str], names: Collection[str]) -> str:
    """The error for columns without a key."""
    name = next((one for one in unknown if one in images), unknown[0])
    shown = cut(name)
    if name in images:
        has_image = any(key in of_key for key in IMAGE_KEYS)
        key = "" if has_image else f"name it with --columns image={shown}, or "
        return f"column '{shown}' holds images and is not used: {key}leave it out with --columns {UNUSED}={shown}"
    several = f"unknown columns {_listed(unknown)}" if len(unknown) > 1 else f"unknown column '{shown}'"
    free = [key for key in ("question", "answer", "objects", "task") if key not in of_key] or ["answer"]
    advice = (
        f"say what it holds, for example --columns {free[0]}={shown}, or leave it out with --columns {UNUSED}={shown}"
    )
    more = "" if is_named_like_an_image(name) else ". --ignore-extra passes over such columns"
    return f"{several}{nearest(shown, ROLES)} (the columns are {_listed(names)}): {advice}{more}"


def _task_of(of_key: dict[str, str], names: Collection[str], has_image: bool) -> str:
    """The task of the rows of a table without a column for it. Raises `DataError` if the columns fit none."""
    deciding = tuple(key for key in _DECIDING if key in of_key)
    with_image, without = _TASKS.get(deciding, ("", ""))
    task = with_image if has_image else without
    if not task:
        known = "image and answer, image and question and answer, image and objects, question and answer, or messages"
        raise DataError(
            f"the columns {_listed(names)} do not say what is trained; expected {known}, or a column task. Name "
            "columns with --columns, for example --columns image=img answer=label"
        )
    return task


def _listed(names: Collection[str]) -> str:
    shown = [cut(name) for name in list(names)[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
