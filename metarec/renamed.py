"""Deprecation of names: the former ones work for one release, and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def with_former_names(**now: str) -> Callable[[type[T]], type[T]]:
    """A class decorator: attributes can be read, and given to the constructor, by their former names too.

    Args:
        now: the name of each attribute, by the former one.

    Example:
        >>> @with_former_names(colour="color")
        ... class Paint:
        ...     def __init__(self, color: str) -> None:
        ...         self.color = color
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     print(Paint(colour="red").colour, len(said))
        red 2
    """

    def renamed(kind: type[T]) -> type[T]:
        init: Callable[..., None] = kind.__init__

        def warn(old: str) -> None:
            said = f"{kind.__name__}.{old} is now {now[old]}; rename it"
            warnings.warn(said, DeprecationWarning, stacklevel=3)

        def reader(old: str) -> property:
            def read(own: T) -> Any:
                warn(old)
                return getattr(own, now[old])

            return property(read, doc=f"The former name of ``{now[old]}``.")

        @functools.wraps(init)
        def begin(own: T, *given: Any, **named: Any) -> None:
            for old in now.keys() & named.keys():
                warn(old)
                named[now[old]] = named.pop(old)
            init(own, *given, **named)

        kind.__init__ = begin  # type: ignore[method-assign, assignment]
        for old in now:
            setattr(kind, old, reader(old))
        return kind

    return renamed
