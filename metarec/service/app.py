"""The web application: its paths, its errors, and the life of its queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from metarec.functional.fusion import NotFiniteError
from metarec.recommender import Recommender
from metarec.service import requests as schema
from metarec.service.answering import Answer, Job, answers
from metarec.service.batching import Batcher
from metarec.service.body import StrictRoute
from metarec.service.connections import Connections
from metarec.service.errors import HANDLERS
from metarec.service.guard import Guard, Metrics
from metarec.service.limits import Limits

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse, "description": why}
    for status, why in {
        400: "The body is not JSON in UTF-8, or could be understood in two ways.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "A field is missing, unknown or out of range, or an id is unknown.",
        429: "Too much is waiting; try again.",
        503: "No answer in time, or too many connections; try again.",
    }.items()
}


class Service:
    """A recommender behind a queue.

    Args:
        recommender: what answers. The service alone may change it while it runs.
        limits: on requests.
        max_batch: users adapted together.
        version: of the software, for ``/health``.
    """

    def __init__(self, recommender: Recommender, limits: Limits, *, max_batch: int, version: str) -> None:
        self.recommender, self.limits, self.version = recommender, limits, version
        self.metrics, self.connections = Metrics(), Connections(limits)
        self.batcher: Batcher[Job, Answer] = Batcher(
            lambda jobs: answers(self.recommender, jobs),
            max_batch=max_batch,
            waiting=limits.waiting,
            observe=self.metrics.batch.observe,
        )
        self._read()

    def _read(self) -> None:
        """Take notice of the catalogue."""
        self.reader = schema.Reader(self.recommender.catalog.items, self.limits)
        self.metrics.items.set(len(self.recommender.catalog.items))

    def _prepare(self) -> None:
        """Compute what is computed once: tables, and what a user without clicks is shown."""
        self.recommender.adapt([])

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """From the first request to the last: computes what is computed once, and answers all that waits at the end."""
        async with self.batcher:
            await self.batcher.call(self._prepare)
            yield

    async def recommend(self, request: schema.RecommendRequest) -> Response:
        """Recommend to someone from their clicks."""
        [answer] = await self._answered([self.reader.job(request)], [""])
        return Response(schema.content(answer), media_type="application/json")

    async def recommend_users(self, request: schema.RecommendUsersRequest) -> Response:
        """Recommend to several users at once."""
        jobs = self.reader.jobs(request)
        found, parts = await self._answered(jobs, [f"users.{i}: " for i in range(len(jobs))]), []
        for answer in found:
            parts.append(schema.content(answer))
            await asyncio.sleep(0)  # other clients' requests go on in between
        return Response(b'{"users":[%b]}' % b",".join(parts), media_type="application/json")

    async def _answered(self, jobs: Sequence[Job], where: Sequence[str]) -> list[Answer]:
        async with asyncio.timeout(self.limits.seconds):
            results = await self.batcher.submit(jobs)
        out = []
        for place, result in zip(where, results, strict=True):
            if isinstance(result, ValueError) and not isinstance(result, NotFiniteError):
                raise ValueError(f"{place}{result}")
            if isinstance(result, Exception):
                raise result
            out.append(result)
        return out

    async def add_items(self, request: schema.AddItemsRequest) -> JSONResponse:
        """Take in new items: they can be clicked and are recommended at once."""
        self.reader.check_size("ids", request.ids, self.limits.ids)
        return await self._changed(
            lambda: self.recommender.add_items(request.ids, request.vectors, attributes=request.attributes)
        )

    async def remove_items(self, request: schema.ItemsRequest) -> JSONResponse:
        """Recommend items no more; they stay known as clicks."""
        self.reader.check_ids("ids", request.ids)
        return await self._changed(lambda: self.recommender.remove_items(request.ids))

    async def restore_items(self, request: schema.ItemsRequest) -> JSONResponse:
        """Recommend removed items again."""
        self.reader.check_ids("ids", request.ids)
        return await self._changed(lambda: self.recommender.restore_items(request.ids))

    async def _changed(self, change: Callable[[], Any]) -> JSONResponse:
        """Make a change between two batches."""
        await self.batcher.call(change)
        await self.batcher.call(self._prepare)
        self._read()
        catalog = self.recommender.catalog
        return JSONResponse({"items": len(catalog.items), "removed": len(catalog.hidden)})

    async def health(self) -> JSONResponse:
        """Whether the service answers everyone, and what it serves."""
        problem = self.connections.problem()
        said = {
            **({"status": "short of connections", "problem": problem} if problem else {"status": "ok"}),
            "items": len(self.recommender.catalog.items),
            "learners": list(self.recommender.learners),
            "waiting": len(self.batcher),
            "version": self.version,
        }
        return JSONResponse(said, 503 if problem else 200)

    async def show_metrics(self) -> PlainTextResponse:
        """Counts and times in the Prometheus text format."""
        self.metrics.waiting.set(len(self.batcher))
        return PlainTextResponse(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def create_app(
    recommender: Recommender,
    *,
    limits: Limits | None = None,
    max_batch: int = 64,
    allow_changes: bool = False,
    version: str = "",
) -> FastAPI:
    """The service as an ASGI application, for any ASGI server.

    Args:
        recommender: what answers.
        limits: on requests; default :class:`Limits`.
        max_batch: users adapted together.
        allow_changes: let clients add and remove items. There is no log-in: only where all clients are trusted.
        version: shown by ``/health`` and in the documentation.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> app = create_app(Recommender(MML.build(planted(users=60, items=40), MMLConfig(dim=8))))
        >>> sorted(app.openapi()["paths"])
        ['/health', '/metrics', '/recommend', '/recommend/users']
    """
    limits = limits or Limits()
    service = Service(recommender, limits, max_batch=max_batch, version=version)
    app = FastAPI(
        title="metarec",
        summary="A new user has clicked three things; what next?",
        version=version or "0",
        lifespan=service.running,
        redoc_url=None,
    )
    app.state.service, app.router.route_class = service, StrictRoute
    add = app.add_api_route
    add("/recommend", service.recommend, methods=["POST"], response_model=schema.RecommendResponse, responses=_ERRORS)
    many = schema.RecommendUsersResponse
    add("/recommend/users", service.recommend_users, methods=["POST"], response_model=many, responses=_ERRORS)
    if allow_changes:
        changes: dict[str, Callable[..., Any]]
        changes = {"add": service.add_items, "remove": service.remove_items, "restore": service.restore_items}
        for name, change in changes.items():
            path = f"/items/{name}"
            add(path, change, methods=["POST"], response_model=schema.ItemsResponse, responses=_ERRORS)
    short: dict[int | str, dict[str, Any]]
    short = {503: {"model": schema.HealthResponse, "description": "Some clients cannot connect."}}
    add("/health", service.health, methods=["GET"], response_model=schema.HealthResponse, responses=short)
    add("/metrics", service.show_metrics, methods=["GET"], response_class=PlainTextResponse)
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(Guard, limits=limits, metrics=service.metrics, paths=paths)
    return app
