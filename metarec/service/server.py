"""The service on a socket."""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.h11_impl import H11Protocol

from metarec.service.limits import Limits

_LOG = logging.getLogger("metarec.service")
_GOODBYE = 10  # seconds that running requests get when the service is stopped


def make_server(app: FastAPI, limits: Limits, *, log_level: str = "INFO") -> uvicorn.Server:
    """A server for an application, with the limits that only a server can keep."""
    config = uvicorn.Config(
        app,
        http=type("Timed", (TimedProtocol,), {"seconds": limits.read_seconds}),
        ws="none",
        lifespan="on",
        log_config=_logging(log_level),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_GOODBYE,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are then still answered.

    Args:
        app: from :func:`create_app`.
        host: address to listen on; 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one, which the log names.
        limits: on connections and slow headers; default :class:`Limits`.

    Raises:
        OSError: if the address cannot be had, as when the port is taken.
    """
    with listening(host, port) as place:
        server = make_server(app, limits or Limits())
        name, number = place.getsockname()[:2]
        _LOG.info("listening on http://%s:%d, documented under /docs", f"[{name}]" if ":" in name else name, number)
        server.run(sockets=[place])


def listening(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: if the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error


def _logging(level: str) -> dict[str, Any]:
    """The server's way of logging, for the service's own lines too."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"] = {name: {"handlers": ["default"], "level": level} for name in ("uvicorn", "metarec.service")}
    return config


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on a client whose headers take longer than ``seconds``."""

    seconds = 10.0

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        # Without this a body waits until the client has acknowledged the headers, which it puts off by 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._due: asyncio.TimerHandle | None = self.loop.call_later(self.seconds, self._hang_up)

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        if self._due is None and self._between():
            self._due = self.loop.call_later(self.seconds, self._hang_up)
        super().data_received(data)
        if not self._between():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._stop()
        super().connection_lost(exc)

    def _between(self) -> bool:
        """Whether no request is being answered: none has come, or its headers are not whole yet."""
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _hang_up(self) -> None:
        self._due = None
        if self._between():
            self.transport.close()
