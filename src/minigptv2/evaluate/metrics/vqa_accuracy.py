"""Computes VQA accuracy with the official normalization of answers (Antol et al. 2015, VQA challenge).

Ten people answered each question. The accuracy of an answer is 1 if three of nine people gave it, averaged over the ten
sets of nine. The published results were computed with the challenge's script from MiniGPT-4's repository. Its unusual
conventions are kept and documented here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

AGREEING = 3
"""The number of people who must give an answer for full accuracy."""
_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(max(0, number - 1)) for number, word in enumerate(_NUMBERS)}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # any period not before a digit: the look-behind of the script is misspelled
_MOST_PERIODS = 32  # the script passes a flag with this value as the number of replacements

_WORDS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
"""Words that are restored when all their apostrophes are missing."""
_DOUBLE_WORDS = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've there'd've
they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've somebody'd've
"""
"""Words that are restored when one of their apostrophes is missing."""


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _WORDS.split()}
    for word in _DOUBLE_WORDS.split():
        for number, character in enumerate(word):
            if character == "'":
                table[word[:number] + word[number + 1 :]] = word
    at = "'ow's'at"
    return table | {"somebody'd": "somebodyd", "ow's'at": at, "'ows'at": at, "'ow'sat": at}


CONTRACTIONS = _contractions()
"""Word without apostrophes to the word. Two entries begin with a capital and never match, as in the script."""


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The accuracy of `answer`, 0..1, given the answers of (ten) people as they were written.

    If the people's answers differ, all answers are normalized. If they are equal, none is. Case is always ignored.
    Equal answers of several people count several times.
    """
    prediction, *references = (_spaced(text) for text in (answer, *people))
    if len(set(references)) > 1:
        prediction, *references = (normalize_vqa(text) for text in (prediction, *references))
    same = [one.lower() == prediction.lower() for one in references]
    left_out = [min(1.0, (sum(same) - one) / AGREEING) for one in same]
    return sum(left_out) / len(left_out)


def direct_answer_accuracy(answer: str, people: Sequence[str]) -> float:
    """A-OKVQA's accuracy of direct answers (Schwenk et al. 2022): 1 if three of the ten people wrote exactly this."""
    return min(1.0, sum(one == answer for one in people) / AGREEING)


def agreement(answer: str, people: Sequence[str]) -> float:
    """VizWiz's accuracy in the published evaluation: the number of people who wrote `answer`, divided by 3, at most 1.

    Only case is ignored. The script joins the people's answers with `_` and divides the result at each `_`, so an
    answer that contains one counts as several.
    """
    written = "_".join(people).split("_")
    return min(1.0, sum(one.lower() == answer.lower() for one in written) / AGREEING)


def equals_lowered(answer: str, label: str) -> float:
    """1 if `answer` in lower case is the label as it is written, else 0."""
    return float(answer.lower() == label)


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the normalized answer is one of the normalized accepted ones, else 0."""
    prediction = normalize_vqa(answer)
    return float(any(prediction == normalize_vqa(one) for one in accepted))


def normalize_vqa(text: str) -> str:
    """`text` in lower case, without punctuation and articles, with number words as digits and contractions restored."""
    words = [NUMBER_WORDS.get(word, word) for word in strip_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def strip_punctuation(text: str) -> str:
    """`text` without punctuation.

    A mark is removed if it occurs beside a space anywhere in `text`, or if a number in `text` has a comma. Otherwise it
    becomes a space. The first 32 periods that are not before a digit are removed.
    """
    stripped = text
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or in_number else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)
