"""HTTP/1.1 read by httptools, a compiled parser, with the same limits as with h11."""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from metarec.service.protocol import _CHUNKS, HEAD_BYTES, Timed


class CompiledProtocol(Timed, HttpToolsProtocol):  # type: ignore[misc]
    """HTTP read by httptools, where that is installed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chunks = 0
        self._head: int | None = None  # bytes of the headers that are not whole yet
        self._begun = 0  # requests that began in what was received last
        self._between = True  # no request is being received

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        alone = 1 if self._between else 0  # requests that begin, if all of it belongs to the headers of one
        pending, self._begun = self._between or self._head is not None, 0
        super().data_received(data)
        if pending and self._begun == alone and self._head is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

    def silent(self) -> bool:
        """Whether no request is being answered: none has come, or its headers are not whole yet."""
        return not self.pipeline and super().silent()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head, self._chunks, self._between = 0, 0, False
        self._begun += 1

    def on_headers_complete(self) -> None:
        """All headers have come.

        Raises:
            httptools.HttpParserError: if there are too many bytes of them.
        """
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES:
            raise httptools.HttpParserError("headers of too many bytes")
        self._head = None
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of a body begins.

        Raises:
            httptools.HttpParserError: if there are too many: each costs as much as a thousand bytes.
        """
        self._chunks += 1
        if self._chunks > _CHUNKS + 1:  # the last one is empty
            raise httptools.HttpParserError(f"more than {_CHUNKS} chunks")

    def on_message_complete(self) -> None:
        """A request has come whole."""
        super().on_message_complete()
        self._between = True

    def on_response_complete(self) -> None:
        """An answer was sent: read on only when all that has come is answered."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()
