"""Tests an ordinary client beside all attacks at once. `make attack` does the same for ten minutes."""

import pytest

from tests.soak.attack import ATTACKS, run


@pytest.mark.soak
def test_an_ordinary_client_is_answered_under_attack() -> None:
    result = run(30, seed=1)
    assert result["problems"] == []
    assert result["ordinary answers"] > 5 and all(result[act.__name__] for act in ATTACKS)
