"""One tiny model for all tests of serving."""

import pytest

from minigptv2.predict.predictor import Predictor
from minigptv2.tokenizer import Tokenizer
from tests.serve.tiny import tiny_predictor


@pytest.fixture(scope="session")
def predictor(tokenizer: Tokenizer) -> Predictor:
    return tiny_predictor(tokenizer)
