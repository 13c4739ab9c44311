"""Limits the connections of a server: how many there are, and how long each may take to send or receive.

uvicorn has no deadline for a request whose head is incomplete and none for a client that does not read. Its protocol
class can be replaced (`Config.http`), and this one adds both through the callbacks of `asyncio.Protocol`. Whether a
request is complete is read from the documented states of `h11.Connection`. Bodies have limits of their own (`bodies`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigptv2.errors import ConfigError
from minigptv2.serve.config import Access, ClientLimits

log = logging.getLogger(__name__)
RESERVED_FILES = 256
"""File handles for everything else: the model, the log, and accepted connections that are not counted yet."""
BACKLOG = 64
"""Connections that the system keeps for the server. asyncio accepts as many at once, before any is counted."""
MAX_HEAD = 32 * 2**10
"""The largest head of a request, in bytes."""
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def client_key(address: str) -> str:
    """The name under which a client's use is counted: its IPv4 address or the /64 network of its IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


def server_config(app: Any, access: Access, clients: ClientLimits, **options: Any) -> uvicorn.Config:
    """The configuration of a server of `app` that keeps the limits of `clients`. `options` are those of uvicorn.

    Raises `ConfigError` if the process may not open enough files.
    """
    connections = Connections(clients, usable_connections(clients.max_connections), access.trusted_proxies)
    return uvicorn.Config(
        app,
        host=access.host,
        port=access.port,
        http=cast(Any, partial(LimitedProtocol, connections)),
        ws="none",
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=clients.keep_alive_s,
        proxy_headers=bool(access.trusted_proxies),
        forwarded_allow_ips=list(access.trusted_proxies),
        server_header=False,
        **options,
    )


def usable_connections(wanted: int) -> int:
    """How many of `wanted` connections the limit of open files allows. Raises that limit first, as far as possible.

    Raises `ConfigError` if it allows none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED_FILES)
    if allowed < 1:
        raise ConfigError(
            f"the limit of open files is {soft}; serving needs more than {RESERVED_FILES}. Raise it with ulimit -n"
        )
    if allowed < wanted:
        log.warning("the limit of open files is %d: at most %d connections instead of %d", soft, allowed, wanted)
    return allowed


class Connections:
    """The open connections. At a limit, the one that has waited longest for its client is closed for a new one.

    A new connection is refused only if all others have sent complete requests. So clients that hold many unfinished
    requests do not lock out others, even at the same address.
    """

    def __init__(self, clients: ClientLimits, max_connections: int, trusted_proxies: tuple[str, ...] = ()) -> None:
        self.clients, self._max, self._trusted = clients, max_connections, trusted_proxies
        self._open: dict[str, list[LimitedProtocol]] = {}

    def admit(self, connection: LimitedProtocol) -> bool:
        """Count `connection`. False if the limit is reached and none can be closed."""
        own = self._open.get(connection.key, [])
        if len(own) >= self.clients.max_client_connections and connection.peer not in self._trusted:
            if not _drop_one(own):
                return False
        elif sum(map(len, self._open.values())) >= self._max:
            crowds = sorted(self._open.values(), key=len, reverse=True)
            if not any(_drop_one(crowd) for crowd in crowds):
                return False
        self._open.setdefault(connection.key, []).append(connection)
        return True

    def forget(self, connection: LimitedProtocol) -> None:
        """Stop counting `connection`. Does nothing if it is not counted."""
        own = self._open.get(connection.key, [])
        if connection in own:
            own.remove(connection)
        if not own:
            self._open.pop(connection.key, None)


def _drop_one(connections: list[LimitedProtocol]) -> bool:
    """Close the connection that has waited longest for its client. False if none waits."""
    waiting = [connection for connection in connections if connection.waits]
    if not waiting:
        return False
    min(waiting, key=lambda connection: connection.heard_at).drop()
    return True


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol with deadlines for the head of a request and for a client that does not read."""

    def __init__(self, connections: Connections, **settings: Any) -> None:
        super().__init__(**settings)
        self._connections = connections
        self.peer = self.key = ""
        self.heard_at = 0.0
        """When the connection was made or the last request was complete, on the clock of the loop."""
        self._head = _Deadline(self, connections.clients.head_timeout_s)
        self._write = _Deadline(self, connections.clients.write_timeout_s)

    @property
    def waits(self) -> bool:
        """Whether the server waits for the client: for a request or for the rest of one."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self.key = client_key(self.peer)
        self.heard_at = self.loop.time()
        transport.set_write_buffer_limits(0)
        if not self._connections.admit(self):
            transport.write(UNAVAILABLE)
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and start or stop the deadline of the head."""
        super().data_received(data)
        if not self.waits:
            self.heard_at = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        self._connections.forget(self)
        self._head.stop()
        self._write.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline for the client to read what was sent."""
        super().pause_writing()
        self._write.start()

    def resume_writing(self) -> None:
        """Stop that deadline: everything is sent."""
        self._write.stop()
        super().resume_writing()

    def drop(self) -> None:
        """Close the connection at once."""
        self._connections.forget(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Run the deadline while no request is answered. More bytes of an unfinished head do not extend it."""
        if self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):
            self._head.stop()
        elif not self.transport.is_closing():
            self._head.start()


class _Deadline:
    """Drops a connection after some seconds, unless stopped."""

    def __init__(self, connection: LimitedProtocol, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start, unless started before."""
        if self._timer is None:
            self._timer = self._connection.loop.call_later(self._seconds, self._connection.drop)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
