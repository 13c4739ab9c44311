"""Defines the error of a refused request, and its form as JSON."""

from __future__ import annotations

import json
from typing import Any

from minigptv2.errors import MiniGPTv2Error


class RequestError(MiniGPTv2Error):
    """A refused request: the HTTP `status`, the reason, the field concerned (`param`), and an error `code`.

    `allow` are the methods of the route, for a request that uses another one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(_encodable(message))
        self.status, self.param, self.code, self.allow = status, param and _encodable(param), code, allow

    def as_json(self) -> dict[str, Any]:
        """The error in the form of the OpenAI API."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _encodable(text: str) -> str:
    """`text` with unpaired surrogates, which JSON can hold but UTF-8 cannot, written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def short(value: object) -> str:
    """`value` as JSON for a message, cut to 80 characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 80 else text[:80] + "..."
