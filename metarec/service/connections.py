"""How many connections are open, and which of them has to give way."""

from __future__ import annotations

import logging
import os
import time
from typing import Protocol

from metarec.service.limits import Limits

_LOG = logging.getLogger("metarec.service")
SPARE = 8  # connections above the limit, which get 503 or the service's health
BURST = 16  # connections accepted at once
_RESERVE = SPARE + 2 * BURST  # files for these, for what is being closed, and for the process itself
_RECENT = 2.0  # seconds after a refused connection in which the service's health tells of it


class Client(Protocol):
    """A connection, as far as it matters here."""

    def silent(self) -> bool:
        """Whether no request of it is being answered."""

    def unread(self) -> int:
        """Bytes of answers that the client has not taken."""

    def hang_up(self) -> None:
        """Close it at once."""


class Connections:
    """The open connections of a server.

    Args:
        limits: on their number, and on the bytes that wait for clients to read them.

    Attributes:
        most: that may be open.
    """

    def __init__(self, limits: Limits) -> None:
        self.most, self._most_bytes = limits.connections, limits.held_bytes
        self._open: dict[Client, None] = {}  # oldest first, as below
        self._crowd: dict[Client, None] = {}  # those above the limit
        self._unread: dict[Client, None] = {}
        self._files: int | None = None  # that the process may open, where that is what bounds the connections
        self._starved = (-_RECENT, "")  # when a connection could not be accepted last, and why

    def afford(self) -> None:
        """Let no more be open than the process may open files.

        Raises:
            OSError: if it may open none.
        """
        room = _room()
        if room is None or room[0] >= self.most:
            return
        left, self._files = room
        if left < 1:
            raise OSError(f"the process may open {self._files} files, too few to serve; raise the limit (ulimit -n)")
        _LOG.warning(
            "%d connections may be open at once, not %d: the process may open %d files; raise that limit (ulimit -n)",
            left, self.most, self._files,
        )  # fmt: skip
        self.most = left

    def add(self, client: Client) -> None:
        """Note a new connection; above the limit, the one of those above it that has been silent longest goes."""
        self._open[client] = None
        if len(self._open) <= self.most:
            return
        _LOG.warning("more than %d connections: refusing some", self.most)
        self._crowd[client] = None
        if len(self._crowd) > SPARE:
            self._end(next((c for c in self._crowd if c.silent()), client))

    def remove(self, client: Client) -> None:
        """Forget a connection that is closed."""
        for place in (self._open, self._crowd, self._unread):
            place.pop(client, None)

    def too_many(self, client: Client) -> bool:
        """Whether a connection is above the limit."""
        return client in self._crowd and len(self._open) > self.most

    def hold(self, client: Client) -> None:
        """Note that a client leaves bytes unread; of too many bytes, those that have waited longest go."""
        self._unread[client] = None
        while len(self._unread) > 1 and sum(c.unread() for c in self._unread) > self._most_bytes:
            _LOG.warning("hung up on a client that left its answer unread: too much was waiting to be read")
            self._end(next(iter(self._unread)))

    def release(self, client: Client) -> None:
        """Note that a client has read everything."""
        self._unread.pop(client, None)

    def starve(self, error: OSError) -> None:
        """Note that a connection could not be accepted, and close the one that has been silent longest."""
        self._starved = (time.monotonic(), error.strerror or str(error))
        _LOG.warning("cannot accept connections: %s; trying again", self._starved[1])
        silent = next((c for c in self._open if c.silent() and not c.unread()), None)
        if silent is not None:
            self._end(silent)

    def problem(self) -> str | None:
        """What keeps clients from connecting, and what to do; None if nothing does."""
        since, why = self._starved
        if time.monotonic() - since < _RECENT:
            return f"connections cannot be accepted: {why}; close some, or raise the limit (ulimit -n)"
        if len(self._open) <= self.most:
            return None
        remedy = f"the process may open {self._files} files (ulimit -n)" if self._files else "see Limits.connections"
        return f"{len(self._open)} connections are open, and at most {self.most} are answered; {remedy}"

    def _end(self, client: Client) -> None:
        self.remove(client)
        client.hang_up()


def _room() -> tuple[int, int] | None:
    """Connections that the process can still open, and files that it may open; None where that is not limited."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft - len(os.listdir("/dev/fd")) - _RESERVE, soft
