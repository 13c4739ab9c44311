"""Tests how many rows of an embedding may have no piece of the tokenizer."""

from __future__ import annotations

import pytest

from minigptv2.errors import CheckpointError, ConfigError
from minigptv2.model.build import _check_pieces


@pytest.mark.parametrize(
    ("pieces", "rows"),
    [(32000, 32000), (32001, 32064), (259, 320), (259, 384), (3, 64), (100015, 102400), (49152, 50176), (10000, 10240)],
)
def test_padding_is_allowed(pieces: int, rows: int) -> None:
    _check_pieces(pieces, rows, "model")


@pytest.mark.parametrize(("pieces", "rows"), [(3, 32000), (3, 300), (640, 32000), (16000, 32000), (250, 512), (0, 64)])
def test_another_models_tokenizer_is_refused(pieces: int, rows: int) -> None:
    with pytest.raises(CheckpointError, match=f"only {pieces} pieces for the {rows} rows"):
        _check_pieces(pieces, rows, "model")


def test_too_many_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 301 pieces, but model embeds only 300"):
        _check_pieces(301, 300, "model")
