"""Bodies from bytes to JSON, strictly: what another reader could understand otherwise is refused."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from email.message import Message
from inspect import signature
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.exceptions import HTTPException
from fastapi.routing import APIRoute

from metarec.service.errors import NO_OBJECT

Headers = Iterable[tuple[bytes, bytes]]


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
        return _DECODER.decode(text)
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


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


class Endpoint:
    """What answers the bodies of one path: one reader and one set of errors, with FastAPI before it or without.

    Args:
        answer: a handler as FastAPI takes it: ``request``, a pydantic model, and perhaps ``key``, a header.
    """

    def __init__(self, answer: Callable[..., Awaitable[Response]]) -> None:
        hints = {name: parameter.annotation for name, parameter in signature(answer, eval_str=True).parameters.items()}
        self._answer, self._model, self._keyed = answer, hints["request"], "key" in hints

    async def respond(self, headers: Headers, content: bytes) -> Response:
        """The answer to a body.

        Raises:
            ValueError: if the body is no such request; and what the handler raises.
        """
        if not content or not _says_json(headers):
            raise ValueError(NO_OBJECT)
        request = self._model.model_validate(parsed(content))
        if not self._keyed:
            return await self._answer(request)
        key = next((value for name, value in headers if name == b"idempotency-key"), None)
        return await self._answer(request, key=None if key is None else key.decode("latin-1"))


def _says_json(headers: Headers) -> bool:
    said = next((value for name, value in headers if name == b"content-type"), b"")
    if said == b"application/json":
        return True
    kind = Message()
    kind["content-type"] = said.decode("latin-1")
    main, sub = kind.get_content_maintype(), kind.get_content_subtype()
    return main == "application" and (sub == "json" or sub.endswith("+json"))


class BodyRoute(APIRoute):
    """A path of FastAPI whose requests with a body are answered by an :class:`Endpoint`.

    Attributes:
        direct: that endpoint; None for other paths.
    """

    direct: Endpoint | None = None

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """What answers a request."""
        if self.methods != {"POST"}:
            return super().get_route_handler()
        direct = self.direct = Endpoint(self.endpoint)

        async def answer(request: Request) -> Response:
            return await direct.respond(request.scope["headers"], await request.body())

        return answer
