"""Codecs serialise models whose classes have no ``state()`` of their own: learners, part by part."""

from __future__ import annotations

from typing import Any, Protocol


class Codec(Protocol):
    """Serialises models of some classes, and rebuilds them."""

    def state(self, model: Any) -> Any:
        """As :meth:`metarec.model.Model.state`."""
        ...

    def from_state(self, kind: type[Any], saved: Any, catalog: Any, warm: Any) -> Any:
        """As :meth:`metarec.model.Model.from_state`, for a model of this class."""
        ...


_CODECS: dict[type, Codec] = {}


def add_codec(kind: type, codec: Codec) -> None:
    """Register a codec for a class and its subclasses."""
    _CODECS[kind] = codec


def codec_of(kind: type) -> Codec | None:
    """The codec that serialises a class; None if the class has a ``state`` of its own.

    Example:
        >>> codec_of(int) is None
        True
    """
    for base in kind.__mro__:
        if base in _CODECS or "state" in vars(base):
            return _CODECS.get(base)
    return None
