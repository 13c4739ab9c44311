"""Tests that wrong passwords are paced, and that the owner is not locked out."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest

from minigptv2.serve import passwords as passwords_module
from minigptv2.serve.passwords import Password
from minigptv2.serve.request_error import RequestError

RIGHT, WRONG = "Bearer correct horse", "Bearer battery staple"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "PACE_S", 0.02)
    monkeypatch.setattr(passwords_module, "MAX_WAIT_S", 0.1)


async def status(password: Password, client: str, authorization: str) -> int:
    try:
        await password.check(client, authorization)
    except RequestError as error:
        return error.status
    return 200


async def flood(password: Password, clients: list[str], authorization: str = WRONG) -> list[int]:
    return await asyncio.gather(*(status(password, client, authorization) for client in clients))


@pytest.mark.parametrize("authorization", [WRONG, "Basic " + base64.b64encode(b"me:staple").decode(), "bearer "])
def test_wrong_passwords_of_a_client_are_paced_and_limited(authorization: str) -> None:
    began = time.monotonic()
    found = asyncio.run(flood(Password("correct horse"), ["1.1.1.1"] * 50, authorization))
    assert set(found) == {401, 429} and 4 <= found.count(401) <= 8
    assert time.monotonic() - began > 0.08


def test_other_clients_do_not_wait() -> None:
    async def beside() -> tuple[list[int], float]:
        password = Password("correct horse")
        attack = asyncio.ensure_future(flood(password, ["1.1.1.1"] * 50))
        await asyncio.sleep(0)
        began = time.monotonic()
        found = await flood(password, ["2.2.2.2", "2.2.2.2", "3.3.3.3"], RIGHT)
        took = time.monotonic() - began
        await attack
        return found, took

    found, took = asyncio.run(beside())
    assert found == [200] * 3 and took < 0.08


def test_the_owner_at_the_address_of_an_attacker_is_not_locked_out() -> None:
    async def beside() -> list[int]:
        password = Password("correct horse")
        assert await status(password, "proxy", RIGHT) == 200
        attack = asyncio.ensure_future(flood(password, ["proxy"] * 50))
        await asyncio.sleep(0)
        found = await flood(password, ["proxy"] * 20, RIGHT)
        await attack
        return found

    assert asyncio.run(beside()) == [200] * 20


def test_the_right_password_passes_after_wrong_ones() -> None:
    async def later() -> int:
        password = Password("correct horse")
        await flood(password, ["1.1.1.1"] * 50)
        await asyncio.sleep(0.03)
        return await status(password, "1.1.1.1", RIGHT)

    assert asyncio.run(later()) == 200


def test_a_request_without_a_password_is_no_attempt() -> None:
    async def asked() -> list[int]:
        return await flood(Password("correct horse"), ["1.1.1.1"] * 50, "")

    assert asyncio.run(asked()) == [401] * 50


def test_the_memory_of_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "REMEMBERED", 10)
    password = Password("correct horse")
    asyncio.run(flood(password, [f"1.1.1.{number}" for number in range(50)]))
    assert len(password._next_attempt) == 10
