"""Checks a `tokenizer.json` of unknown origin, and removes what would change the encoding of plain text.

The `tokenizers` library panics on some files and grows without limit on others. Only the parts that tokenizers of
LLaMA models have are admitted, and each text that a rule inserts is bounded.
"""

from __future__ import annotations

from typing import Any

from minigptv2.foreign_files import parse_json

MAX_BYTES = 32 << 20
"""Largest tokenizer file. That of 128,000 pieces has 9 MiB."""
MAX_GROWTH = 256
"""How much longer the rules of a file may make a text."""
_PARTS = {
    "normalizer": ("Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip"),
    "pre_tokenizer": ("Sequence", "Metaspace", "ByteLevel", "Digits", "Split", "Punctuation", "Whitespace"),
    "decoder": ("Sequence", "Metaspace", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip"),
}
_LISTS = ("normalizers", "pretokenizers", "decoders")
"""The keys of the parts of a `Sequence`."""
_MAX_DEPTH = 8


def checked_tokenizer(data: bytes) -> dict[str, Any]:
    """The JSON of a tokenizer without padding, truncation and post-processing. They apply to whole inputs of others.

    Raises `ValueError` with the reason for a file that this package cannot use.
    """
    document = parse_json(data)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError("it has no model")
    _check_model(document["model"])
    for part, kinds in _PARTS.items():
        growth = _growth(document.get(part), part, kinds)
        if growth > MAX_GROWTH:
            raise ValueError(f"the rules of its {part} make a text {growth} times as long, at most {MAX_GROWTH} times")
    return {**document, "padding": None, "truncation": None, "post_processor": None}


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {str(model['type'])[:40]!r}; expected BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"{key} is not supported")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ValueError("its vocabulary must be an object {piece: number}")
    numbers = vocabulary.values()
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(vocabulary))):
        raise ValueError(f"its {len(vocabulary)} pieces must have the numbers 0 to {len(vocabulary) - 1}")
    unknown = model.get("unk_token")
    if unknown is not None and not (isinstance(unknown, str) and unknown in vocabulary):
        raise ValueError("its unk_token is not in the vocabulary")


def _growth(rule: Any, part: str, kinds: tuple[str, ...], depth: int = 0) -> int:
    """The factor by which a rule, or a sequence of rules, can make a text longer."""
    if rule is None:
        return 1
    if not isinstance(rule, dict) or rule.get("type") not in kinds or depth > _MAX_DEPTH:
        kind = rule.get("type") if isinstance(rule, dict) else rule
        raise ValueError(f"its {part} is {str(kind)[:40]!r}; expected one of {', '.join(kinds)}")
    growth = 1
    for key in _LISTS:
        parts = rule.get(key) or []
        if not isinstance(parts, list):
            raise ValueError(f"{key} of its {part} must be a list")
        for below in parts:
            growth = min(growth * _growth(below, part, kinds, depth + 1), 1 << 40)
    inserted = [rule.get(key) for key in ("content", "prepend", "replacement")]
    return growth * max(1, *(len(text) for text in inserted if isinstance(text, str)), 1)
