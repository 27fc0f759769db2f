"""Errors as JSON: ``{"error": "what is wrong, and what to do"}``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from metarec.functional.fusion import NotFiniteError
from metarec.functional.text import printable
from metarec.service.batching import QueueFullError

_LOG = logging.getLogger("metarec.service")
Handler = Callable[[Request, Any], Awaitable[JSONResponse]]
_SHOWN = 3  # faults of one request that are named
_NAME = 60  # characters of a field's name that an error repeats
_LATER = {"Retry-After": "1"}


def told(error: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as an answer: cut, and printable, whatever of the request it repeats."""
    return JSONResponse({"error": printable(error)}, status, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What the recommender says of ids, k and vectors is fit for clients."""
    return told(str(error), 422)


async def _not_finite(request: Request, error: NotFiniteError) -> JSONResponse:
    _LOG.error("the model is broken: %s", error)
    return told("the model's scores are not finite; see the log of the service", 500)


async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = error.errors()
    first = [_fault(fault) for fault in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return told("; ".join([*first, *more]), 422)


def _fault(fault: Mapping[str, Any]) -> str:
    place = fault["loc"][1:]
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']} at character {place[0]}"
    if not place and fault["type"] != "string_unicode":
        return "expected a JSON object as the body, under the header content-type: application/json"
    names = ".".join(printable(str(part), _NAME) for part in place) or "a name of the body"
    return f"{names}: {'Input should be an object' if fault['type'].startswith('model') else fault['msg']}"


async def _full(request: Request, error: QueueFullError) -> JSONResponse:
    return told(str(error), 429, _LATER)


async def _late(request: Request, error: TimeoutError) -> JSONResponse:
    return told("there was no answer in time; try again", 503, _LATER)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    return told(str(error.detail), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours; the server writes it to its log."""
    return told("internal error; see the log of the service", 500)


HANDLERS: Mapping[type[Exception], Handler] = {
    NotFiniteError: _not_finite,
    ValueError: _refused,
    TypeError: _refused,
    RequestValidationError: _malformed,
    QueueFullError: _full,
    TimeoutError: _late,
    HTTPException: _http,
    Exception: _failed,
}
