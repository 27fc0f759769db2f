"""A real server on a loopback port, and a plain client for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

from metarec.recommender import Recommender, User, Users
from metarec.service import Limits, create_app
from metarec.service.connections import Connections
from metarec.service.server import listening, make_server

QUICK = Limits(body_bytes=20_000, clicks=60, users=50, k=30, ids=45, waiting=64, seconds=30, read_seconds=20)


@contextmanager
def running(recommender: Recommender, limits: Limits = QUICK, **options: Any) -> Iterator[int]:
    """The port of a server that runs in a thread of its own."""
    with started(recommender, limits, **options) as (port, _):
        yield port


@contextmanager
def started(
    recommender: Recommender, limits: Limits = QUICK, buffer: int | None = None, **options: Any
) -> Iterator[tuple[int, Connections]]:
    """The port of such a server, and its connections; the system keeps about ``buffer`` bytes of an answer for it."""
    app = create_app(recommender, limits=limits, version="1.2.3", **options)
    server = make_server(app, limits, log_level="CRITICAL")
    with listening("127.0.0.1", 0) as place:
        if buffer is not None:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            yield place.getsockname()[1], app.state.service.connections
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of one request; a GET without a body."""
    connection = HTTPConnection("127.0.0.1", port)
    content = None if body is None else json.dumps(body).encode()
    try:
        kind = {"content-type": "application/json"}
        connection.request("GET" if content is None else "POST", path, content, kind)
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if answer.headers["content-type"] == "application/json" else text
    finally:
        connection.close()


def post(path: str, content: bytes, *headers: str) -> bytes:
    """A request as it goes over the wire."""
    head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join([*head, f"content-length: {len(content)}", "", ""]).encode() + content


def talk(port: int, sent: bytes) -> bytes:
    """All that comes back for some bytes, until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
        return b"".join(parts)


def until(done: Callable[[], Any]) -> None:
    """Wait for something that must come."""
    for _ in range(2000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def deaf(port: int, sent: bytes) -> socket.socket:
    """A client that sends something and does not read what comes of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(sent)
    return client


def rest(client: socket.socket) -> bytes:
    """What a client still gets."""
    parts = []
    with client:
        client.settimeout(20)
        try:
            while part := client.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


class Gated(Recommender):
    """A recommender that does not answer users with clicks before it is told to."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.gate, self.entered, self.sizes = threading.Event(), threading.Event(), []  # type: ignore[var-annotated]

    def adapt(self, history: Any) -> User | Users:  # type: ignore[override]
        if history:
            self.sizes.append(len(history))
            self.entered.set()
            self.gate.wait()
        return super().adapt(history)
