"""Kinds of events in the codes of items: ``item + kind * 2**48``, so that a plain code is an event of kind 0."""

from __future__ import annotations

from typing import Any

SHIFT = 48
ITEM = (1 << SHIFT) - 1


def coded(item: Any, kind: Any) -> Any:
    """Codes of events of some kinds with items; both numbers, arrays or tensors of whole numbers.

    Example:
        >>> items_of(coded(5, 2)), kinds_of(coded(5, 2)), coded(5, 0)
        (5, 2, 5)
    """
    return item + (kind << SHIFT)


def items_of(codes: Any) -> Any:
    """The items of coded events."""
    return codes & ITEM


def kinds_of(codes: Any) -> Any:
    """The kinds of coded events; 0 is the one that is to be predicted."""
    return codes >> SHIFT
