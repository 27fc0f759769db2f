"""Any container of ids as plain lists: by position, never by label."""

from __future__ import annotations

import difflib
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, Set
from operator import index
from typing import Any, NoReturn, SupportsIndex

LISTS = ("to_pylist", "to_list", "tolist")
"""What Arrow, polars, pandas, numpy and torch call the way from a column to a list."""


def plain(values: Any, what: str, *, ordered: bool = True) -> Sequence[Any]:
    """The elements of any container, in the order of their places.

    Args:
        values: a list, tuple, array, column (pandas, with any index, polars or Arrow), view of a dict or generator.
        what: what is asked for, to begin a message with.
        ordered: whether the order means something; a set has none.

    Raises:
        ValueError: if that is not told by positions: a string, a table of several columns, a mapping, a set where the
            order means something, or no container.

    Example:
        >>> plain({"ann": "a", "bob": "b"}.values(), "adapt")
        ['a', 'b']
        >>> plain({"ann": "a"}, "adapt")
        Traceback (most recent call last):
        ...
        ValueError: adapt: expected a sequence of item ids, got a dict, whose keys are labels; pass its values()
    """
    if type(values) is list or type(values) is tuple:
        return values
    values = bare(values)
    if isinstance(values, str | bytes):
        raise ValueError(f"{what}: expected a sequence of item ids, got the string {values!r}; write [{values!r}]")
    if hasattr(type(values), "columns"):
        raise _refused(what, values, "a table; pass one of its columns")
    if ordered and isinstance(values, Mapping | ItemsView):
        raise _refused(what, values, "whose keys are labels; pass its values()")
    if ordered and isinstance(values, Set) and not isinstance(values, KeysView):
        raise _refused(what, values, "which has no order; pass a list")
    found = next((getattr(values, name)() for name in LISTS if hasattr(values, name)), values)
    if not isinstance(found, Iterable):
        raise ValueError(f"{what}: expected a sequence of item ids, got {found!r} ({type(found).__name__})")
    return list(found)


def plain_rows(values: Any, what: str) -> list[Sequence[Any]]:
    """A container of containers as plain lists.

    Raises:
        ValueError: as :func:`plain`, of any of them, naming its place.
    """
    return [_row(row, what, number) for number, row in enumerate(plain(values, what))]


def _row(row: Any, what: str, number: int) -> Sequence[Any]:
    if isinstance(row, str):
        raise ValueError(f"{what}: expected a sequence of item ids per user, got the string {row!r} as user {number}")
    return plain(row, f"{what}: user {number}")


def is_single(value: Any) -> bool:
    """Whether a value stands for itself, as an id does, and holds no others."""
    return isinstance(value, str | bytes) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def bare(value: Any) -> Any:
    """A value without the wrapping of Arrow's scalars and of arrays without dimensions."""
    if hasattr(value, "as_py"):
        return value.as_py()
    return value.item() if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") else value


def check_labels(values: Any, ids: Sequence[str], what: str) -> None:
    """Refuse rows whose index has the ids in another order: they are taken by position.

    Raises:
        ValueError: if so.
    """
    index = getattr(values, "index", None)
    if index is None or callable(index):  # a list's method
        return
    labels = list(index)
    if labels != list(ids) and not set(labels).isdisjoint(ids):
        raise ValueError(
            f"{what}: rows are taken by position, but their index has the ids in another order, {labels[:3]} where ids "
            f"begin {list(ids[:3])}; put the rows in the order of the ids (.loc[ids]), or give a dict by id"
        )


def unknown_id(ids: Sequence[Any], known: Mapping[Any, int], what: str) -> NoReturn:
    """Say which of some ids is not known.

    Args:
        ids: of which one at least is not known.
        known: the ids that are.
        what: what they name.

    Raises:
        ValueError: always, naming the first id that is not known and the nearest ones that are.
    """
    position, name = next((i, n) for i, n in enumerate(ids) if not isinstance(n, str | int) or n not in known)
    kind = type(next(iter(known), ""))
    texts, said = {str(other): other for other in known}, _said(name)
    if type(name) is kind:
        near = difflib.get_close_matches(said, texts, n=3, cutoff=0.5)
        problem = f"unknown {what} id {name!r} (at position {position})"
    else:
        inside = sorted((other for other in texts if said in other), key=len)[:3] if said else []
        near = inside or difflib.get_close_matches(said, texts, n=3, cutoff=0.5)
        kinds = "strings" if kind is str else "whole numbers"
        problem = f"{what} ids are {kinds}, got {name!r} of type {type(name).__name__} (at position {position})"
    nearest = ", ".join(repr(texts[text]) for text in near)
    hint = f"nearest known ids: {nearest}" if near else f"known ids look like {tuple(known)[:3]}"
    raise ValueError(f"{problem}; {hint}")


def _said(name: Any) -> str:
    """What the string would be that somebody meant by another value."""
    value = bare(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _refused(what: str, values: Any, why: str) -> ValueError:
    return ValueError(f"{what}: expected a sequence of item ids, got a {type(values).__name__}, {why}")


def whole(value: SupportsIndex, what: str) -> int:
    """A number of at least 1, of whatever type of whole numbers.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")
    return index(value)
