"""Bodies from bytes to JSON, strictly: what another reader could understand otherwise is refused."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.exceptions import HTTPException
from fastapi.routing import APIRoute


def parsed(content: bytes) -> Any:
    """What a body says.

    Raises:
        json.JSONDecodeError: if it is not JSON.
        fastapi.HTTPException: with status 400, if it is not UTF-8, nests too deeply, names a field twice, or holds
            NaN, an infinity or a number of thousands of digits.

    Example:
        >>> parsed(b'{"clicks": [], "k": 3}')
        {'clicks': [], 'k': 3}
        >>> parsed(b'{"k": 3, "k": 4}')
        Traceback (most recent call last):
        ...
        fastapi.exceptions.HTTPException: 400: the body names the field 'k' twice
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise HTTPException(400, "the body nests too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise HTTPException(400, "the body holds a number of too many digits") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        for name, _ in pairs:
            if name not in out:
                raise HTTPException(400, f"the body names the field {name[:60]!r} twice")
            del out[name]
    return out


def _no_number(name: str) -> NoReturn:
    raise HTTPException(400, f"the body holds {name}, which is not JSON")


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parsed(await self.body())


class StrictRoute(APIRoute):
    """A path whose bodies are read by :func:`parsed`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """What answers a request."""
        answer = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await answer(_StrictRequest(request.scope, request.receive))

        return strictly
