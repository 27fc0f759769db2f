"""Errors as JSON: ``{"error": "what is wrong, and what to do"}``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from metarec.functional.fusion import NotFiniteError
from metarec.functional.text import printable
from metarec.service.batching import QueueFullError
from metarec.service.journal import JournalError

_LOG = logging.getLogger("metarec.service")
Handler = Callable[[Any], JSONResponse]
_SHOWN = 3  # faults of one request that are named
_NAME = 60  # characters of a field's name that an error repeats
_LATER = {"Retry-After": "1"}
NO_OBJECT = "expected a JSON object as the body, under the header content-type: application/json"


def told(error: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as an answer: cut, and printable, whatever of the request it repeats."""
    return JSONResponse({"error": printable(error)}, status, headers)


def _refused(error: Exception) -> JSONResponse:
    """What the recommender says of ids, k and vectors is fit for clients."""
    return told(str(error), 422)


def _not_finite(error: NotFiniteError) -> JSONResponse:
    _LOG.error("the model is broken: %s", error)
    return told("the model's scores are not finite; see the log of the service", 500)


def _no_json(error: json.JSONDecodeError) -> JSONResponse:
    return told(f"the body is not JSON: {error.msg} at character {error.pos}", 422)


def _malformed(error: ValidationError) -> JSONResponse:
    faults = error.errors(include_url=False)
    first = [_fault(fault) for fault in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return told("; ".join([*first, *more]), 422)


def _fault(fault: Mapping[str, Any]) -> str:
    place = fault["loc"]
    if not place and fault["type"] != "string_unicode":
        return NO_OBJECT
    names = ".".join(printable(str(part), _NAME) for part in place) or "a name of the body"
    return f"{names}: {'Input should be an object' if fault['type'].startswith('model') else fault['msg']}"


def _full(error: QueueFullError) -> JSONResponse:
    return told(str(error), 429, _LATER)


def _late(error: TimeoutError) -> JSONResponse:
    return told("there was no answer in time; try again", 503, _LATER)


def _no_journal(error: JournalError) -> JSONResponse:
    _LOG.error("the journal fails: %s", error)
    return told("the journal cannot be read or written; see the log of the service", 503, _LATER)


def _http(error: HTTPException) -> JSONResponse:
    return told(str(error.detail), error.status_code, error.headers)


def _failed(error: Exception) -> JSONResponse:
    """A fault of ours; the server writes it to its log."""
    return told("internal error; see the log of the service", 500)


HANDLERS: Mapping[type[Exception], Handler] = {
    NotFiniteError: _not_finite,
    JournalError: _no_journal,
    json.JSONDecodeError: _no_json,
    ValidationError: _malformed,
    ValueError: _refused,
    TypeError: _refused,
    QueueFullError: _full,
    TimeoutError: _late,
    HTTPException: _http,
    Exception: _failed,
}


def refusal(error: Exception) -> JSONResponse:
    """The answer to a request that met an error."""
    return next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)(error)


def is_ours(error: Exception) -> bool:
    """Whether an error is a fault of ours, which belongs in the log with its traceback."""
    return next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS) is _failed


async def handle(request: Request, error: Exception) -> JSONResponse:
    """As :func:`refusal`, for FastAPI."""
    return refusal(error)
