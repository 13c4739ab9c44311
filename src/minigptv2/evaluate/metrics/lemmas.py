"""Lemmatizes an answer with simplemma (`pip install 'minigptv2[metrics]'`), for the official protocol of OK-VQA."""

from __future__ import annotations

import importlib.util
import re

from minigptv2.errors import ConfigError

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def lemmatize(answer: str) -> str:
    """The answer in lower case, with simplemma's English lemma in the place of each word."""
    from simplemma import lemmatize as lemma_of

    return _WORD.sub(lambda word: lemma_of(word[0], lang="en"), answer.lower())


def check_lemmatizer() -> None:
    """Raise `ConfigError` if simplemma is not installed."""
    if importlib.util.find_spec("simplemma") is None:
        raise ConfigError(
            "the official protocol of OK-VQA needs the lemmatizer simplemma: pip install 'minigptv2[metrics]', or give "
            "--protocol okvqa=published"
        )
