"""Holds the limits and the address of a server, checked before a model is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from minigptv2.errors import ConfigError

MAX_TEMPERATURE = 2.0
"""The highest sampling temperature that a request may set."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """The limits of one request and of the queue. A request over a limit is refused with the limit in the message."""

    max_body_mib: int = 24
    """The largest request body in MiB. Images are inside, base64-encoded, a third larger than their files."""
    max_megapixels: int = 64
    """The largest image that is decoded, at most `image_header.MAX_PIXELS`. The size is read from the file header, so a
    larger image is refused at no cost."""
    max_images: int = 4
    """Images in one conversation."""
    max_text: int = 32_000
    """Characters of all messages in a conversation. The context length of the model may allow less."""
    max_new_tokens: int = 512
    """The most tokens in one answer."""
    max_batch: int = 32
    """The maximum batch size."""
    max_waiting: int = 128
    """Requests that wait for the batch. Further ones are refused at once and can be repeated later."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "max_waiting" else 1):
                raise ConfigError(f"--{name.replace('_', '-')} must be a positive number, got {value}")

    @property
    def bodies(self) -> BodyLimits:
        """The limits of request bodies that follow from these."""
        max_bytes, max_text_bytes = self.max_body_mib * 2**20, 12 * self.max_text + 2**17
        return BodyLimits(max_bytes, self.max_text, max_text_bytes, max_marks=self.max_text + 20_000)


@dataclass(frozen=True)
class BodyLimits:
    """The limits of request bodies. They hold while a body arrives, before it is parsed."""

    max_bytes: int
    """The largest body."""
    max_text: int
    """The characters of a conversation, as errors state them."""
    max_text_bytes: int
    """The most bytes of a body outside its images. A character takes up to 12 bytes as JSON escapes."""
    max_marks: int
    """The most brackets, commas and colons outside images. They bound the elements and the nesting of the document, and
    so the memory and time of the parser."""
    at_once: int = 8
    """The memory for the bodies of all unanswered requests, in bodies of the largest size."""
    client_share: float = 0.5
    """The part of that memory that one client may use. Beyond it, its oldest unfinished body is dropped."""
    pause_s: float = 30.0
    """The longest pause between two parts of a body."""
    timeout_s: float = 300.0
    """The longest time for a whole body."""
    grace_s: float = 10.0
    """The time before the least rate applies."""
    min_bytes_per_s: float = 16 * 2**10
    """The least rate after `grace_s`, on average."""


@dataclass(frozen=True)
class ClientLimits:
    """The limits of connections. A client is an IPv4 address or a /64 network of IPv6."""

    max_connections: int = 1024
    """Open connections. Fewer if the process may not open that many files."""
    max_client_connections: int = 256
    """Open connections of one client."""
    head_timeout_s: float = 20.0
    """The longest time from a connection, or the first byte of a further request, to a complete head."""
    keep_alive_s: int = 5
    """The longest pause after an answer before the next request."""
    write_timeout_s: float = 60.0
    """The longest time for a client to read a part of an answer."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be a positive number, got {value}")


@dataclass(frozen=True)
class Access:
    """The address of the server and its access control. A password is required unless the address is loopback."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on."""
    password: str | None = None
    """Browsers ask for it, with any user name. Programs send it as their API key."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may use besides the address. Other names are refused, so that a foreign page cannot
    reach the server through a name of its own (DNS rebinding)."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose `X-Forwarded-For` header names the client. Without them, all clients of a proxy count
    as one."""
    cors_origins: tuple[str, ...] = ()
    """Origins, such as https://chat.example, whose pages may use the API. The server's own page needs none."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 2**16:
            raise ConfigError(f"--port must be 1 to 65535, got {self.port}")
        if not self.is_loopback and not self.password:
            raise ConfigError(
                f"--host {self.host} is reachable by others and there is no password: set --password-file FILE or "
                "MINIGPTV2_PASSWORD, or listen on 127.0.0.1 and forward the port (ssh -L)"
            )
        if self.password is not None and len(self.password) < MIN_PASSWORD:
            raise ConfigError(f"the password must have at least {MIN_PASSWORD} characters, got {len(self.password)}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def admits_host(self, header: str) -> bool:
        """Whether the Host header `header` (name or address, optionally with a port) names this server."""
        name = header.rsplit(":", 1)[0] if header.rsplit(":", 1)[-1].isdigit() else header
        name = name.strip("[]").lower()
        if name in LOOPBACK_NAMES or name in [allowed.lower() for allowed in (self.host, *self.allowed_hosts)]:
            return True
        return not self.is_loopback and _is_address(name)


MIN_PASSWORD = 8
"""The fewest characters of a password."""


def _is_address(name: str) -> bool:
    """Whether `name` is an IP address, which DNS rebinding cannot change."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
