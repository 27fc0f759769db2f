"""What stands in front of every request: limits on its body, the metrics, and the short way to an endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metarec.service.body import Endpoint
from metarec.service.errors import is_ours, refusal
from metarec.service.limits import Limits

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PARTS = 20_000  # lists and objects of a body that cost little
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
        self.counted, self.timed = lru_cache(None)(self.requests.labels), lru_cache(None)(self.seconds.labels)
        self.batch = Histogram("metarec_batch_users", "Users in one inner loop.", buckets=_USERS, **own)
        waiting, items = "Users whose answer is not there yet.", "Items of the catalogue."
        self.waiting = Gauge("metarec_waiting_users", waiting, multiprocess_mode="livesum", **own)
        self.items = Gauge("metarec_items", items, multiprocess_mode="livemax", **own)

    def text(self) -> bytes:
        """All of it in the Prometheus text format: of all workers, where there are several."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class Guard:
    """Reads a request's body within the limits, passes the request on, and counts what comes of it.

    Args:
        app: what answers.
        limits: on the body.
        metrics: counts go there.
        paths: those that are counted under their own name.
        direct: what answers POST to a path without going through the application.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        paths: frozenset[str],
        direct: Mapping[str, Endpoint],
    ) -> None:
        self.app, self.limits, self.metrics, self.paths, self.direct = app, limits, metrics, paths, direct
        self._parts = max(_PARTS, 100 + 3 * (limits.users + limits.ids))  # as many as what is allowed can have
        self._held = 0  # bytes of bodies that are not answered yet

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
            self.metrics.counted(path, str(status)).inc()
            self.metrics.timed(path).observe(time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        too_many = scope.get("state", {}).get("too_many")
        if too_many and too_many() and scope["path"] != "/health":
            await refuse(send, 503, "too many connections are open; try again", {"retry-after": "1"})
            return
        content = bytearray()
        try:
            body = await self._body(scope, receive, content)
        except _RefusedError as error:
            await refuse(send, error.status, str(error))
        else:
            await self._passed(scope, body, receive, send)
        finally:
            self._held -= len(content)

    async def _passed(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        endpoint = self.direct.get(scope["path"])
        if endpoint is not None and scope["method"] == "POST":
            try:
                response = await endpoint.respond(scope["headers"], body)
            except Exception as error:
                await refusal(error)(scope, receive, send)
                if is_ours(error):
                    raise
            else:
                await response(scope, receive, send)
            return
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive, content: bytearray) -> bytes:
        """The body, collected in ``content``; empty if the client has gone.

        Raises:
            _RefusedError: if it is compressed, too large or too slow, or all bodies together are too large.
        """
        headers, seconds = dict(scope["headers"]), self.limits.read_seconds
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _RefusedError(415, "the body is compressed; send it as it is, without content-encoding")
        length, more = headers.get(b"content-length", b"0"), True
        self._check(int(length) if length.isdigit() else self.limits.body_bytes + 1)
        try:
            async with asyncio.timeout(seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return b""
                    part, more = message.get("body", b""), message.get("more_body", False)
                    content += part
                    self._held += len(part)
                    self._check(len(content))
        except TimeoutError as error:
            raise _RefusedError(408, f"the body did not arrive within {seconds:g} seconds") from error
        parts = content.count(b"[") + content.count(b"{")
        if parts > self._parts:
            raise _RefusedError(413, f"the body has {parts} lists and objects; send fewer users or items at once")
        return bytes(content)

    def _check(self, size: int) -> None:
        most = self.limits.body_bytes
        if size > most:
            raise _RefusedError(413, f"the body has more than {most} bytes; send fewer users or clicks at once")
        if self._held > self.limits.held_bytes:
            raise _RefusedError(429, "too many bytes wait for their answers; try again")


class _RefusedError(Exception):
    """Why a request is not passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def refuse(send: Send, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer with an error, and close the connection: the rest of the request is not read."""
    content = json.dumps({"error": message}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**fields, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
