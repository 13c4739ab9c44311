"""Checks the password of requests and paces wrong ones.

A client has one attempt per `PACE_S`. Further ones wait for their turn, and are refused without a check if the wait is
long. The right password passes at once from an address where it was used before. So an attacker behind the same proxy
does not lock out the owner. Guesses from such an address are delayed but not limited: the proxy must do that.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections import OrderedDict

from minigptv2.serve.request_error import RequestError

PACE_S = 0.5
"""The time between two attempts of a client, and the delay of the answer to a wrong password."""
MAX_WAIT_S = 10.0
"""The longest wait for an attempt."""
REMEMBERED = 10_000
"""Clients whose attempts are remembered."""


class Password:
    """The password of a server."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._next_attempt: OrderedDict[str, float] = OrderedDict()
        self._trusted: OrderedDict[str, float] = OrderedDict()

    async def check(self, client: str, authorization: str) -> None:
        """Raise `RequestError` unless the Authorization header holds the password."""
        given = _given(authorization)
        if given is None:  # not an attempt: browsers ask for the password after this answer
            raise _wrong()
        is_right = hmac.compare_digest(given, self._password)
        if is_right and client in self._trusted:
            self._trusted.move_to_end(client)
            return
        await self._turn(client)
        if not is_right:
            await asyncio.sleep(PACE_S)
            raise _wrong()
        _remember(self._trusted, client, asyncio.get_running_loop().time())

    async def _turn(self, client: str) -> None:
        """Wait until `client` may make an attempt."""
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next_attempt.get(client, now))
        if turn - now > MAX_WAIT_S:
            raise RequestError("too many wrong passwords from this address: try again later", status=429, code="busy")
        _remember(self._next_attempt, client, turn + PACE_S)
        await asyncio.sleep(turn - now)


def _given(authorization: str) -> bytes | None:
    """The password in an Authorization header: Bearer (an API key) or Basic (with any user name). None without one."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.encode("latin-1")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return None


def _wrong() -> RequestError:
    return RequestError("wrong or missing password", status=401, code="invalid_api_key")


def _remember(entries: OrderedDict[str, float], client: str, value: float) -> None:
    entries[client] = value
    entries.move_to_end(client)
    while len(entries) > REMEMBERED:
        entries.popitem(last=False)
