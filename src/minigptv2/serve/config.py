"""What a server accepts and where it listens: numbers of the operator, checked before a model is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from minigptv2.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many wait. What is over a limit is refused with its number."""

    max_body_mib: int = 24
    """Largest body of any request, in MiB; images travel inside, a third larger than their files."""
    max_megapixels: int = 25
    """Largest picture that is decoded, at most what `data.images` decodes. A file says its size in its first bytes, so
    a larger one costs nothing."""
    max_images: int = 4
    """Images of one conversation."""
    max_text: int = 32_000
    """Characters of all messages of a conversation together. The model's own length may allow less."""
    max_new_tokens: int = 512
    """Tokens of one answer."""
    max_batch: int = 32
    """Answers that are computed together."""
    max_waiting: int = 128
    """Requests that wait beside them; more are refused at once, to be asked again."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "max_waiting" else 1):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: want a positive number")


@dataclass(frozen=True)
class Access:
    """Where the server listens and who may come in. On loopback no password is needed; anywhere else one is."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on."""
    password: str | None = None
    """What browsers are asked for, with any user name, and programs send as their API key."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may call the server by besides its address: a page elsewhere cannot reach it through a name
    of its own (DNS rebinding)."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 2**16:
            raise ConfigError(f"--port {self.port}: want 1 to 65535")
        if not self.is_loopback and not self.password:
            raise ConfigError(
                f"--host {self.host} lets others in and there is no password: give --password-file FILE or set "
                "MINIGPTV2_PASSWORD, or listen on 127.0.0.1 and forward the port (ssh -L)"
            )
        if self.password is not None and len(self.password) < MIN_PASSWORD:
            raise ConfigError(f"a password of {len(self.password)} characters: want at least {MIN_PASSWORD}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def admits_host(self, header: str) -> bool:
        """Whether a request that names its server `header` (name or address, perhaps with a port) is for this one."""
        name = header.rsplit(":", 1)[0] if header.rsplit(":", 1)[-1].isdigit() else header
        name = name.strip("[]").lower()
        if name in LOOPBACK_NAMES or name in [ours.lower() for ours in (self.host, *self.allowed_hosts)]:
            return True
        return not self.is_loopback and _is_address(name)


MIN_PASSWORD = 8
"""Characters of the shortest password that is taken."""


def _is_address(name: str) -> bool:
    """An address cannot be rebound by a name server."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
