"""Who says the state of models whose classes do not say it themselves: learners are described part by part."""

from __future__ import annotations

from typing import Any, Protocol


class Codec(Protocol):
    """Says the state of models of some classes, and builds them again."""

    def state(self, model: Any) -> Any:
        """As :meth:`metarec.model.Model.state`."""
        ...

    def from_state(self, kind: type[Any], saved: Any, catalog: Any, warm: Any) -> Any:
        """As :meth:`metarec.model.Model.from_state`, for a model of this class."""
        ...


_CODECS: dict[type, Codec] = {}


def add_codec(kind: type, codec: Codec) -> None:
    """Let a codec say the state of a class's models, and of those of its subclasses."""
    _CODECS[kind] = codec


def codec_of(kind: type) -> Codec | None:
    """What says the state of a class's models; None if the class has a ``state`` of its own.

    Example:
        >>> codec_of(int) is None
        True
    """
    for base in kind.__mro__:
        if base in _CODECS or "state" in vars(base):
            return _CODECS.get(base)
    return None
