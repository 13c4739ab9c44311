"""Makes the entry of an image with captions, which are the accepted answers of one caption turn."""

from __future__ import annotations

from minigptv2.corpora.draft import Draft, Where
from minigptv2.corpora.formats.entry import OwnEntry
from minigptv2.corpora.raw import Raw
from minigptv2.errors import DataError
from minigptv2.record import Turn
from minigptv2.typed_marks import answer_text


def entry_of(number: int, image: Where, captions: list[str], raw: Raw, *, name: str, key: str) -> OwnEntry:
    """The entry of an image, the `number`th of its corpus, or its problem.

    `name` calls it in messages, and `key` is its id in the record.
    """
    try:
        answers = tuple(answer_text(caption, "caption") for caption in captions)
    except DataError as error:
        return OwnEntry(name, None, str(error))
    if not answers or not all(map(str.strip, answers)):
        return OwnEntry(name, None, "its caption is empty")
    source = {"corpus": raw.corpus, "id": key}
    return OwnEntry(
        name, Draft(f"{number:08d}", (Turn("caption", None, answers),), image, source, label=name, upright=True)
    )
