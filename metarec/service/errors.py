"""Errors as JSON: ``{"error": "what is wrong, and what to do"}``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from metarec.service.batching import QueueFullError

Handler = Callable[[Request, Any], Awaitable[JSONResponse]]
_SHOWN = 3  # faults of one request that are named
_LATER = {"Retry-After": "1"}


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What the recommender says of ids, k and vectors is fit for clients."""
    return JSONResponse({"error": str(error)}, 422)


async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = error.errors()
    told = [_told(fault) for fault in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return JSONResponse({"error": "; ".join([*told, *more])}, 422)


def _told(fault: Mapping[str, Any]) -> str:
    place = fault["loc"][1:]
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']} at character {place[0]}"
    if not place:
        return "expected a JSON object as the body, under the header content-type: application/json"
    return f"{'.'.join(map(str, place))}: {fault['msg']}"


async def _full(request: Request, error: QueueFullError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 429, _LATER)


async def _late(request: Request, error: TimeoutError) -> JSONResponse:
    return JSONResponse({"error": "there was no answer in time; try again"}, 503, _LATER)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours; the server writes it to its log."""
    return JSONResponse({"error": "internal error; see the log of the service"}, 500)


HANDLERS: Mapping[type[Exception], Handler] = {
    ValueError: _refused,
    TypeError: _refused,
    RequestValidationError: _malformed,
    QueueFullError: _full,
    TimeoutError: _late,
    HTTPException: _http,
    Exception: _failed,
}
