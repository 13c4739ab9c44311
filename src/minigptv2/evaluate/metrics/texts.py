"""Splits captions into words as the official caption metrics do: lower-case Penn Treebank tokens without punctuation.

The official tools run Stanford's PTBTokenizer (CoreNLP 3.4.1) in Java. This module reproduces its behavior on captions,
as recorded in `tests/evaluate/golden/captions.json`, without Java and without state between captions.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""Tokens that the official tools remove. Names of brackets are in lower case in their output and therefore stay."""

_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "…": "...",
    "–": "--",
    "—": "--",
    "“": "``",
    "”": "''",
    "€": "$",
    "£": "#",
}
_ABBREVIATIONS = (
    "mr",
    "mrs",
    "ms",
    "dr",
    "st",
    "mt",
    "jr",
    "sr",
    "prof",
    "vs",
    "etc",
    "no",
    "inc",
    "co",
    "corp",
    "ltd",
    "ave",
    "blvd",
    "rd",
    "ft",
    "gen",
    "rev",
    "sgt",
    "capt",
    "jan",
    "feb",
    "aug",
    "sept",
    "oct",
    "nov",
    "dec",
)
_WORD = r"[^\W\d_][\w]*"
_TOKEN = re.compile(
    "|".join(
        (
            r"</?[A-Za-z][A-Za-z0-9]*/?>",  # tags are one token
            r"https?://[^\s\"<>]*[^\s\"<>.,!?;:'()]",
            r"[A-Za-z0-9][\w.+-]*@[\w-]+(?:\.[A-Za-z0-9-]+)+",
            r"[@#][A-Za-z_]\w*",
            r"[:;]-?[()]",
            r"\.\.+|…",
            r"[!?]+",
            r"(?:[A-Za-z]\.){2,}",  # u.s., a.m.
            rf"(?:Ph\.D|{'|'.join(_ABBREVIATIONS)})\.(?!\w)|no\.(?=\d)",
            r"[A-Za-z]\.(?=\.*\s+\w)",  # an initial
            r"\d+[ \u00a0]\d+/\d+",
            r"'?\d\ds(?!\w)",
            r"'(?:tis|twas)(?!\w)|'n'(?!\w)|[cf]#",
            r"\$|#|%",
            rf"\d+(?:[.,:/-]\d+)*(?:(?:-{_WORD})+|[^\W\d_]\w*)?(?:-[\w]+)*",
            rf"(?:{_WORD}|\w)(?:(?:[-/.'@]|&(?=(?-i:[A-Z])))\w+)*'?\+*(?:\.(?=[,;]))?",
            r"'(?:s|m|d|ll|re|ve)(?!\w)",
            r"--+|[–—]",
            r"''|``|\"|[“”]",
            r"[*_]+",
            r"\S",
        )
    ),
    re.IGNORECASE,
)
_TAIL = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))$")
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "gimme": "gim me",
    "lemme": "lem me",
    "'tis": "'t is",
    "'twas": "'t was",
    "y'all": "y' all",
    "more'n": "more 'n",
}


def tokenize(caption: str) -> list[str]:
    """The words of a caption. Empty for a caption of punctuation only."""
    return [token for token in all_tokens(caption) if token not in PUNCTUATION]


def all_tokens(caption: str) -> list[str]:
    """The words and punctuation marks of a caption, in order."""
    tokens: list[str] = []
    opened = False
    text = caption.replace("\n", " ").replace("&amp;", "&")
    for match in _TOKEN.finditer(_apostrophes(text)):
        token = match[0].lower()
        if token == '"':
            tokens.append("''" if opened else "``")
            opened = not opened
        else:
            tokens += _parts(token)
    return tokens


def _apostrophes(text: str) -> str:
    """The text with straight apostrophes instead of curly ones."""
    return text.replace("’", "'").replace("‘", "`")


def _parts(token: str) -> list[str]:
    if token in _SPLIT:
        return _SPLIT[token].split()
    if token in _SPELLED:
        return [_SPELLED[token]]
    if token.startswith("..") or token == "…":
        return ["..."]
    if token.startswith("--"):
        return ["--"]
    if token[0] in ":;" and token[-1] in "()" and len(token) > 1:
        return [token[:-1] + _SPELLED[token[-1]]]
    if " " in token:
        return [token.replace(" ", "\u00a0")]  # a mixed number is one token with a hard space
    if token.endswith("'") and len(token) > 1 and token != "'n'":
        return [*_parts(token[:-1]), "'"]
    tail = _TAIL.match(token)
    if tail and not token.startswith("'"):
        return [*_parts(tail[1]), tail[2]]
    return [token]
