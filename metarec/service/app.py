"""The web application: its paths and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from metarec.recommender import Recommender
from metarec.service import requests as schema
from metarec.service.body import BodyRoute
from metarec.service.core import Service
from metarec.service.errors import HANDLERS, handle
from metarec.service.guard import Guard
from metarec.service.journal import Journal
from metarec.service.limits import Limits
from metarec.service.page import page

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse, "description": why}
    for status, why in {
        400: "The body is not JSON in UTF-8, or could be understood in two ways.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "A field is missing, unknown or out of range, or an id is unknown.",
        429: "Too much is waiting; try again.",
        503: "No answer in time, too many connections, or no journal; try again.",
    }.items()
}


class Guarded(FastAPI):
    """FastAPI behind a guard, which sees every request first and answers most without it."""

    guard: Guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.guard(scope, receive, send)


def create_app(
    recommender: Recommender,
    *,
    limits: Limits | None = None,
    max_batch: int = 64,
    allow_changes: bool = False,
    version: str = "",
    journal: Journal | None = None,
    learned: Path | None = None,
) -> FastAPI:
    """The service as an ASGI application, for any ASGI server.

    Args:
        recommender: what answers; as its file has it, where there is a journal.
        limits: on requests; default :class:`Limits`.
        max_batch: users adapted together.
        allow_changes: let clients tell of clicks, and add and remove items. There is no log-in: only where all clients
            are trusted.
        version: shown by ``/health`` and in the documentation.
        journal: what clients change is written there before it is answered, and what other processes write there is
            followed. Without one, changes end with the process.
        learned: a file of a learner, which is served as soon as it is there, and again whenever it is new. Answers
            then have a header ``model-version``.

    Raises:
        DamagedError: if a change of the journal does not fit the model.
        ValueError: if there is a learner's file, but no journal.

    Example:
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> app = create_app(Recommender(MML.build(planted(users=60, items=40), MMLConfig(dim=8))))
        >>> sorted(app.openapi()["paths"])
        ['/health', '/metrics', '/recommend', '/recommend/users']
    """
    limits = limits or Limits()
    service = Service(recommender, limits, max_batch=max_batch, version=version, journal=journal, learned=learned)
    app = Guarded(
        title="metarec",
        summary="A new user has clicked three things; what next?",
        version=version or "0",
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.router.route_class = service, BodyRoute
    for path, (answer, model) in _posts(service, allow_changes).items():
        app.add_api_route(path, answer, methods=["POST"], response_model=model, responses=_ERRORS)
    short: dict[int | str, dict[str, Any]]
    short = {503: {"model": schema.HealthResponse, "description": "Some clients cannot connect."}}
    model = schema.HealthResponse
    app.add_api_route("/health", service.health, methods=["GET"], response_model=model, responses=short)
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"], response_class=PlainTextResponse)
    for error in HANDLERS:
        app.add_exception_handler(error, handle)
    schemas = app.openapi()
    app.add_route("/docs", lambda request: HTMLResponse(page(schemas)), methods=["GET"], include_in_schema=False)
    direct = {route.path: route.direct for route in app.routes if isinstance(route, BodyRoute) and route.direct}
    paths = frozenset(schemas["paths"])
    app.guard = Guard(super(Guarded, app).__call__, limits, service.metrics, paths, direct)
    return app


def _posts(service: Service, allow_changes: bool) -> dict[str, tuple[Callable[..., Any], type[BaseModel]]]:
    """What answers each path that takes a body, and the form of its answers."""
    paths: dict[str, tuple[Callable[..., Any], type[BaseModel]]] = {
        "/recommend": (service.recommend, schema.RecommendResponse),
        "/recommend/users": (service.recommend_users, schema.RecommendUsersResponse),
    }
    changes: dict[str, tuple[Callable[..., Any], type[BaseModel]]] = {
        "/clicks": (service.clicks, schema.ClicksResponse),
        "/items/add": (service.add_items, schema.ItemsResponse),
        "/items/remove": (service.remove_items, schema.ItemsResponse),
        "/items/restore": (service.restore_items, schema.ItemsResponse),
    }
    return {**paths, **changes} if allow_changes else paths
