"""Compares an answer with the accepted texts: exact match and word overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def normalize(text: str) -> str:
    """`text` in lower case, with single spaces and without punctuation at its ends."""
    return " ".join(text.lower().split()).strip(" .,!?;:")


def exact_match(text: str, accepted: Sequence[str]) -> float:
    """1 if the normalized text is one of the accepted ones, else 0."""
    return float(any(normalize(text) == normalize(candidate) for candidate in accepted))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of word precision and recall, 0..1."""
    predicted, expected = Counter(normalize(prediction).split()), Counter(normalize(reference).split())
    common = sum((predicted & expected).values())
    if not common:
        return 0.0
    precision, recall = common / sum(predicted.values()), common / sum(expected.values())
    return 2 * precision * recall / (precision + recall)


def text_scores(text: str, accepted: Sequence[str]) -> dict[str, float]:
    """`exact` and `token_f1` of a text against the accepted texts, the best of them for `token_f1`."""
    return {
        "exact": exact_match(text, accepted),
        "token_f1": max(token_f1(text, candidate) for candidate in accepted),
    }
