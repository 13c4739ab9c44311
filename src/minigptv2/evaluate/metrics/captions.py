"""Computes caption metrics: CIDEr-D, BLEU-1..4 and ROUGE-L, for each caption and for the corpus.

The values equal those of the official tools (`pycocoevalcap` 1.2, after their tokenizer) up to rounding. All their
conventions are kept, and the unusual ones are documented. Sources: arXiv:1411.5726 (CIDEr-D), Papineni et al. 2002
(BLEU), Lin 2004 (ROUGE-L).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from minigptv2.evaluate.metrics.texts import tokenize

MAX_N = 4
"""Longest n-gram."""
CIDER_SIGMA = 6.0
"""Width of CIDEr-D's Gaussian over differences in length."""
ROUGE_BETA = 1.2
"""Weight of recall relative to precision in ROUGE-L."""
_SMALL, _TINY = 1e-9, 1e-15  # added to denominators and numerators, as in the official BLEU

Ngrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions by metric: one for the corpus, and one per caption."""

    corpus: dict[str, float]
    each: dict[str, list[float]]


def caption_scores(candidates: list[str], references: list[list[str]]) -> CaptionScores:
    """`cider`, `bleu_1` .. `bleu_4` and `rouge_l` of one candidate per image against that image's references.

    CIDEr is on its own scale, 0..10; the others are 0..1. Raises `ValueError` for an image without references.
    """
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError(
            f"expected a candidate and references for each image, got {len(candidates)} candidates and "
            f"{len(references)} lists of references"
        )
    predictions = [" ".join(tokenize(text)) for text in candidates]
    tokenized = [[" ".join(tokenize(text)) for text in texts] for texts in references]
    cider = cider_d(predictions, tokenized)
    rouge = [rouge_l(one, several) for one, several in zip(predictions, tokenized, strict=True)]
    bleu, bleus = bleu_scores(predictions, tokenized)
    each = {"cider": cider, "rouge_l": rouge, **{f"bleu_{n + 1}": [row[n] for row in bleus] for n in range(MAX_N)}}
    corpus = {"cider": _mean(cider), "rouge_l": _mean(rouge), **{f"bleu_{n + 1}": bleu[n] for n in range(MAX_N)}}
    return CaptionScores(corpus, each)


def cider_d(predictions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D of each tokenized caption, 0..10. Document frequencies are computed from the given references.

    A single image therefore scores 0: every n-gram is in every document.
    """
    counted = [[_ngrams(text) for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for several in counted:
        frequency.update({gram for counts in several for gram in counts})
    log_documents = math.log(len(references))
    rarity = {gram: log_documents - math.log(max(1, count)) for gram, count in frequency.items()}
    scores = []
    for text, several in zip(predictions, counted, strict=True):
        candidate = _Weighted(_ngrams(text), rarity, log_documents)
        total = sum(candidate.similarity(_Weighted(counts, rarity, log_documents)) for counts in several)
        scores.append(10.0 * total / len(several))
    return scores


class _Weighted:
    """The n-grams of a caption with TF-IDF weights. `length` counts bigrams, as the official tools do."""

    def __init__(self, counts: Ngrams, rarity: dict[tuple[str, ...], float], unseen: float) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            self.weights[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]
        self.length = sum(count for gram, count in counts.items() if len(gram) == 2)

    def similarity(self, other: _Weighted) -> float:
        """Mean over n of the clipped cosine, times the penalty for a difference in length."""
        total = 0.0
        for n in range(MAX_N):
            theirs = other.weights[n]
            dot = sum(min(w, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, w in self.weights[n].items())
            scale = self.norms[n] * other.norms[n]
            total += dot / scale if scale else dot
        return total / MAX_N * math.exp(-((self.length - other.length) ** 2) / (2 * CIDER_SIGMA**2))


def bleu_scores(predictions: list[str], references: list[list[str]]) -> tuple[list[float], list[list[float]]]:
    """BLEU-1..4 of the corpus and of each tokenized caption, 0..1, with the length of the closest reference."""
    totals = [0.0] * (2 * MAX_N)
    lengths = [0, 0]
    each = []
    for text, several in zip(predictions, references, strict=True):
        words = len(text.split())
        nearest = min((abs(len(one.split()) - words), len(one.split())) for one in several)[1]
        most: Ngrams = Counter()
        for one in several:
            most |= _ngrams(one)
        hits = [0] * MAX_N
        for gram, count in _ngrams(text).items():
            hits[len(gram) - 1] += min(count, most[gram])
        guesses = [max(0, words - n) for n in range(MAX_N)]
        each.append(_bleu(hits, guesses, words, nearest))
        totals = [a + b for a, b in zip(totals, [*hits, *guesses], strict=True)]
        lengths = [lengths[0] + words, lengths[1] + nearest]
    return _bleu(totals[:MAX_N], totals[MAX_N:], *lengths), each


def _bleu(hits: list[int] | list[float], guesses: list[int] | list[float], words: int, nearest: int) -> list[float]:
    ratio = (words + _TINY) / (nearest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (hits[n] + _TINY) / (guesses[n] + _SMALL)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return scores


def rouge_l(prediction: str, references: list[str]) -> float:
    """ROUGE-L of a tokenized caption, 0..1. Best precision and best recall may come from different references."""
    words = prediction.split(" ")
    pairs = [(_common(words, one.split(" ")), len(one.split(" "))) for one in references]
    precision = max(common / len(words) for common, _ in pairs)
    recall = max(common / length for common, length in pairs)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


def _ngrams(text: str) -> Ngrams:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
