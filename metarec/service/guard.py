"""What stands in front of every request: limits on its body, and the metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metarec.service.limits import Limits

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What ``/metrics`` shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        labels = ["path", "status"]
        self.requests = Counter("metarec_requests", "Requests answered.", labels, **own)
        self.seconds = Histogram(
            "metarec_request_seconds", "From the headers to the answer.", ["path"], buckets=_SECONDS, **own
        )
        self.batch = Histogram("metarec_batch_users", "Users in one inner loop.", buckets=_USERS, **own)
        self.waiting = Gauge("metarec_waiting_users", "Users whose answer is not there yet.", **own)
        self.items = Gauge("metarec_items", "Items of the catalogue.", **own)


class Guard:
    """Reads a request's body within the limits, passes the request on, and counts what comes of it.

    Args:
        app: what answers.
        limits: on the body.
        metrics: counts go there.
        paths: those that are counted under their own name.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.limits, self.metrics, self.paths = app, limits, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        most, seconds = self.limits.body_bytes, self.limits.read_seconds
        try:
            async with asyncio.timeout(seconds):
                content = await _read(scope, receive, most)
        except TimeoutError:
            await refuse(send, 408, f"the body did not arrive within {seconds:g} seconds")
            return
        if content is None:
            await refuse(send, 413, f"the body has more than {most} bytes; send fewer users or clicks at once")
            return
        parts: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, replay, send)


async def _read(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The body; None if it is too large, or the client has gone."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most:
        return None
    content, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > most:
            return None
    return bytes(content)


async def refuse(send: Send, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer with an error, and close the connection: the rest of the request is not read."""
    content = json.dumps({"error": message}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**fields, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
