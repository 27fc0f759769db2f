"""HTTP/1.1 with the limits that only a connection can keep."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from metarec.service.connections import Connections
from metarec.service.limits import Limits

_LOG = logging.getLogger("metarec.service")
_CHUNKS = 4096  # of one body: 256 bytes each in the largest that is read by default
HEAD_BYTES = 16 << 10  # of a request's headers


class _Counted(h11.Connection):
    """A connection that refuses bodies of very many chunks: each of them costs as much as a thousand bytes."""

    chunks = 0

    def next_event(self) -> Any:
        """What has come, as h11 says it."""
        event = super().next_event()
        if isinstance(event, h11.Data) and event.chunk_start:
            self.chunks += 1
            if self.chunks > _CHUNKS:
                raise h11.RemoteProtocolError(f"more than {_CHUNKS} chunks")
        return event

    def start_next_cycle(self) -> None:
        """Go on with the next request."""
        super().start_next_cycle()
        self.chunks = 0


if TYPE_CHECKING:
    _Base = H11Protocol
else:
    _Base = object


class Timed(_Base):
    """Hangs up on clients that take too long to send their headers, or to read their answers; mixed into a protocol."""

    limits: Limits
    known: Connections

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._due: asyncio.TimerHandle | None = None
        self._take: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        # Without this a body waits until the client has acknowledged the headers, which it puts off by 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause_writing comes with the first byte that the client does not take
        self.app_state = {**self.app_state, "too_many": lambda: self.known.too_many(self)}
        self._due = self.loop.call_later(self.limits.read_seconds, self._headers_late)
        self.known.add(self)

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        if self._due is None and self.silent():
            self._due = self.loop.call_later(self.limits.read_seconds, self._headers_late)
        super().data_received(data)
        if not self.silent():
            self._stop()

    def pause_writing(self) -> None:
        """A client has left bytes of its answer unread."""
        super().pause_writing()
        self._take = self.loop.call_later(self.limits.write_seconds, self._unread_late)
        self.known.hold(self)

    def resume_writing(self) -> None:
        """A client has read everything."""
        super().resume_writing()
        self.known.release(self)
        if self._take is not None:
            self._take.cancel()
            self._take = None

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._stop()
        self.resume_writing()
        self.known.remove(self)
        super().connection_lost(exc)

    def silent(self) -> bool:
        """Whether no request is being answered: none has come, or its headers are not whole yet."""
        return self.cycle is None or self.cycle.response_complete

    def unread(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def hang_up(self) -> None:
        """Close the connection at once, whatever is still to be sent."""
        self.transport.abort()

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _headers_late(self) -> None:
        self._due = None
        if self.silent():
            self.transport.close()

    def _unread_late(self) -> None:
        self._take = None
        _LOG.warning("hung up on a client that left its answer unread for %g seconds", self.limits.write_seconds)
        self.hang_up()


class TimedProtocol(Timed, H11Protocol):
    """HTTP read by h11, which uvicorn always has."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Counted(h11.SERVER, HEAD_BYTES)
