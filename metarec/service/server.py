"""The service on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import importlib.util
import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from metarec.functional.text import printable
from metarec.service.connections import BURST, Connections
from metarec.service.limits import Limits
from metarec.service.protocol import Timed, TimedProtocol

_LOG = logging.getLogger("metarec.service")
_GOODBYE = 10  # seconds that running requests get when the service is stopped
_PAUSE = 0.2  # seconds without accepting, when that has failed
_MINUTE = 60.0  # in which a warning is written once
_WAITING = 2048  # connections that the system keeps for us until they are accepted


class Server(uvicorn.Server):
    """A server that accepts connections itself, so that it can stop doing so.

    asyncio accepts all that wait at once, and without a file descriptor left it logs a traceback for each of thousands.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._accepting: list[asyncio.Task[None]] = []
        self._joining: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets=[])
        for place in sockets or []:
            place.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(place)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take in who has connected already, answer what has begun, and close."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for place in sockets or []:
            with contextlib.suppress(OSError):
                while True:
                    self._join(place.accept()[0])
        await asyncio.gather(*self._joining, return_exceptions=True)
        await asyncio.sleep(0)
        await super().shutdown(sockets)

    async def _accept(self, place: socket.socket) -> None:
        while True:
            try:
                client, _ = await asyncio.get_running_loop().sock_accept(place)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    self._connections.starve(error)
                    await asyncio.sleep(_PAUSE)
                continue
            self._join(client)
            with contextlib.suppress(OSError):
                for _ in range(BURST - 1):
                    self._join(place.accept()[0])
            await asyncio.sleep(0)  # they are counted, and some closed, before more come

    def _join(self, client: socket.socket) -> None:
        client.setblocking(False)
        joining = asyncio.get_running_loop().connect_accepted_socket(self._protocol, client)
        task = asyncio.ensure_future(joining)
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _protocol(self) -> Timed:
        kind: Any = self.config.http_protocol_class
        made: Timed = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made


def protocols() -> list[type[Timed]]:
    """What can read HTTP here, the fastest first."""
    if importlib.util.find_spec("httptools") is None:
        return [TimedProtocol]
    from metarec.service.compiled_protocol import CompiledProtocol

    return [CompiledProtocol, TimedProtocol]


def make_server(app: FastAPI, limits: Limits, *, log_level: str = "INFO") -> uvicorn.Server:
    """A server for an application, with the limits that only a server can keep.

    Raises:
        OSError: if the process may not open enough files.
    """
    connections: Connections = app.state.service.connections
    config = uvicorn.Config(
        app,
        http=type("Served", (protocols()[0],), {"limits": limits, "known": connections}),
        ws="none",
        lifespan="on",
        log_config=log_config(log_level),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GOODBYE,
    )
    connections.afford()
    return Server(config, connections)


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are then still answered.

    Args:
        app: from :func:`create_app`.
        host: address to listen on; 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one, which the log names.
        limits: on connections, and on slow and unread clients; default :class:`Limits`.

    Raises:
        OSError: if the address cannot be had, as when the port is taken, or the process may not open enough files.
        ValueError: if there is no such port.
    """
    with listening(host, port) as place:
        server = make_server(app, limits or Limits())
        _LOG.info("listening on %s, documented under /docs", name_of(place))
        run(server, place)


def run(server: uvicorn.Server, place: socket.socket) -> None:
    """Run a server on a socket until it is told to stop."""
    gc.collect()
    gc.freeze()  # the model and the libraries are not walked through again for each large body
    with contextlib.suppress(KeyboardInterrupt):  # raised once more when all is answered
        server.run(sockets=[place])
    gc.unfreeze()


def name_of(place: socket.socket) -> str:
    """The address of a socket, as a browser takes it."""
    name, number = place.getsockname()[:2]
    return f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"


def listening(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket.

    Args:
        host: its address.
        port: 0 for a free one.
        shared: let other sockets of ours have the same address.

    Raises:
        OSError: if the address cannot be had.
        ValueError: if there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port: expected 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_WAITING, reuse_port=shared)
    except (OSError, ValueError) as error:  # ValueError: what is no host name at all
        raise OSError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error


class Seldom(logging.Filter):
    """Lets the first warning of each kind in a minute pass, so that no client can fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._more: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written; printable then, and with the number of those that were not."""
        text, kind = printable(record.getMessage()), str(record.msg)
        if record.levelno == logging.WARNING:
            if record.created - self._last.get(kind, -_MINUTE) < _MINUTE:
                self._more[kind] = self._more.get(kind, 0) + 1
                return False
            self._last[kind] = record.created
            more = self._more.pop(kind, 0)
            text += f" (and {more} times more before)" if more else ""
        record.msg, record.args = text, ()
        return True


def log_config(level: str) -> dict[str, Any]:
    """The server's way of logging, for the service's own lines too."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"seldom": {"()": Seldom}}
    config["handlers"]["default"]["filters"] = ["seldom"]
    names = ("uvicorn", "metarec.service", "asyncio")
    config["loggers"] = {name: {"handlers": ["default"], "level": level} for name in names}
    return config
