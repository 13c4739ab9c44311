"""Changes valid files at random: their bytes, the values of a document, and its text.

A change of one kind is drawn with its name, and later ones of other kinds may follow, so that some cases have several.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from tests.damage import Damage, change_bytes, cut, flip_a_bit, insert_garbage, zero_a_range

BAD_UTF8 = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe")
LENGTHS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (0, -1, 1, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324)
OTHER_VALUES: tuple[Any, ...] = (
    *NUMBERS,
    float("inf"),
    float("nan"),
    None,
    True,
    False,
    "",
    "x",
    "\x00",
    "\x1b]0;title\x07",
    "\u202ex",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "9" * 5000,
    "x" * 100_000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
    [0] * 10_000,
)


def write_a_length(data: bytes, rng: random.Random) -> bytes:
    """An extreme number in 2, 4 or 8 bytes."""
    size = rng.choice([2, 4, 8])
    at = rng.randrange(len(data))
    number = rng.choice(LENGTHS) % (1 << 8 * size)
    return data[:at] + number.to_bytes(size, rng.choice(["little", "big"])) + data[at + size :]


def insert_bad_text(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(BAD_UTF8) + data[at:]


def repeat_a_part(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 200))
    return data[:start] + data[start:end] * rng.choice([2, 50, 2000]) + data[end:]


def grow(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", b" ", b"x", data]) * rng.choice([1, 100])


BYTE_DAMAGE: tuple[Damage, ...] = (
    cut,
    change_bytes,
    flip_a_bit,
    zero_a_range,
    insert_garbage,
    write_a_length,
    insert_bad_text,
    repeat_a_part,
    grow,
)


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The name of a damage, and the data with it and sometimes further ones."""
    damage = rng.choice(BYTE_DAMAGE)
    changed = damage(data, rng)
    while changed and rng.random() < 0.3:
        changed = rng.choice(BYTE_DAMAGE)(changed, rng)
    return damage.__name__, changed


Place = tuple[Any, Any]
"""A container in a document, and the key or the index of one of its values."""


def _places(value: Any) -> list[Place]:
    """Every value of a document, except the document itself."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def exchange(at: Place, rng: random.Random, others: tuple[Any, ...]) -> None:
    """Another value, mostly of another type."""
    at[0][at[1]] = copy.deepcopy(rng.choice(others))


def remove(at: Place, rng: random.Random, others: tuple[Any, ...]) -> None:
    del at[0][at[1]]


def rename(at: Place, rng: random.Random, others: tuple[Any, ...]) -> None:
    """Another key, or another place in the list."""
    container, key = at
    value = container.pop(key)
    if isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), value)
    else:
        container[rng.choice(["", "x", "\x00", "__class__", str(key).upper(), f"{key} "])] = value


def wrap(at: Place, rng: random.Random, others: tuple[Any, ...]) -> None:
    """The value inside lists or objects."""
    value = at[0][at[1]]
    for _ in range(rng.choice([1, 2, 60])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    at[0][at[1]] = value


def repeat(at: Place, rng: random.Random, others: tuple[Any, ...]) -> None:
    """A list or a text many times as long."""
    value = at[0][at[1]]
    if isinstance(value, (list, str)) and len(value) < 1000:
        at[0][at[1]] = value * rng.choice([2, 100])
    elif isinstance(value, int):
        at[0][at[1]] = value * rng.choice([2, -1, 10**6])


CHANGES: tuple[Callable[[Place, random.Random, tuple[Any, ...]], None], ...] = (
    exchange,
    remove,
    rename,
    wrap,
    repeat,
)


def changed_document(document: Any, rng: random.Random, others: tuple[Any, ...] = OTHER_VALUES) -> tuple[str, Any]:
    """The name of a change, and a copy of the document with it and sometimes further ones."""
    document, first = copy.deepcopy(document), ""
    while not first or rng.random() < 0.3:
        places = _places(document)
        if not places:
            return first or "none", document
        change = rng.choice(CHANGES)
        change(rng.choice(places), rng, others)
        first = first or change.__name__
    return first, document


def changed_json(document: Any, rng: random.Random) -> tuple[str, bytes]:
    """The name of a change, and the JSON of a document with it: in its values, its text or its bytes."""
    kind = rng.random()
    if kind < 0.6:
        name, changed = changed_document(document, rng)
        return name, json.dumps(changed).encode()
    text = json.dumps(document)
    if kind < 0.8:
        return damaged(text.encode(), rng)
    name = rng.choice(["a key twice", "deep", "a number as text", "not a number"])
    colons = [at for at, character in enumerate(text) if character == ":"]
    at = rng.choice(colons) + 1 if colons else 0
    given = {
        "a key twice": text[:1] + text[1:-1] + ", " + text[1:],
        "deep": text[:at] + rng.choice(["[", '{"a":']) * rng.choice([900, 100_000]) + text[at:],
        "a number as text": text[:at] + rng.choice("-1.") + "9" * rng.choice([20, 400, 5000]) + ',"b":' + text[at:],
        "not a number": text[:at] + rng.choice(["NaN", "Infinity", "1e999", "0x10"]) + ', "b":' + text[at:],
    }
    return name, given[name].encode()
