"""A tiny model that the tests of a folder train."""

from __future__ import annotations

import pytest
import torch

from minigptv2.model.bases import fill_weights
from minigptv2.model.build import build_model
from minigptv2.model.minigptv2 import MiniGPTv2
from minigptv2.tokenizer import Tokenizer
from tests.model.tiny import ALL_PARTS, tiny_config


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> MiniGPTv2:
    made = build_model(tiny_config(ALL_PARTS), tokenizer.vocab_size)

    def assign(parameter, value):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            parameter.copy_(value())

    fill_weights(made, [], None, assign, seed=0)
    return made
