"""New clicks as data: columns of a frame or a mapping, checked against the items and the clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.containers import plain
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.data.histories import kind_codes
from metarec.data.kinds import OtherEvents
from metarec.data.vocabulary import Id, Ints

COLUMNS = ("user", "item", "time")
KIND = "kind"
ISO = re.compile(r"\d{4}-\d\d-\d\d")


def click_data(clicks: Any, catalog: Catalog, since: float | None, second: float = 1.0) -> Dataset:
    """New clicks as a data set of the model's items, checked.

    Args:
        clicks: a frame, or a mapping of columns ``user``, ``item`` and ``time``, and ``kind`` where the items are met
            by events of several kinds; without it all are clicks.
        catalog: the items.
        since: the time of the last click that is known; None for none.
        second: how many units of the model's times are a second, for datetimes, dates and ISO text.

    Raises:
        ValueError: if a column is missing or of another length, an id is not known or no text, or a time is no
            number, or before ``since``; names user, item and time.
    """
    user, item, when = (_column(clicks, name) for name in COLUMNS)
    if not len(user) == len(item) == len(when):
        raise ValueError(
            f"observe: expected as many users as items and times, got {len(user)}, {len(item)}, {len(when)}"
        )
    kinds = {"user": str | int, "item": int if catalog.items.whole_numbers else str}
    for name, column in (("user", user), ("item", item)):
        if strange := [value for value in column if isinstance(value, bool) or not isinstance(value, kinds[name])]:
            wanted = "a whole number" if kinds[name] is int else "a string"
            raise ValueError(f"observe: {name} {strange[0]!r} is not {wanted}; ids are of the type of the data's")
    codes, time = _codes(item, catalog), _times([moment(value, second) for value in when])
    if len(time) and since is not None and time.min() < since:
        first = int(np.argmax(time < since))
        raise ValueError(
            f"observe: user {user[first]!r} clicked at {when[first]}, before {since}, the last click that is "
            "known: the clock goes backwards; give clicks in the order of time"
        )
    users = Vocabulary(dict.fromkeys(user), "user")
    order = np.lexsort((np.arange(len(time)), time, users.encode(user)))
    who, what, at = users.encode(user)[order], codes[order], time[order]
    kind = _kinds(clicks, catalog, len(order))[order]
    own, rest = kind == 0, kind > 0
    others = OtherEvents(catalog.kinds, who[rest], what[rest], at[rest], kind[rest]) if rest.any() else None
    return Dataset(users, catalog, who[own], what[own], at[own], np.arange(catalog.size) > 0, others=others)


def _kinds(clicks: Any, catalog: Catalog, rows: int) -> Ints:
    """(n,) the kind of each event; 0, a click, where no column says."""
    if not catalog.kinds or KIND not in _names(clicks):
        return np.zeros(rows, dtype=np.int64)
    return kind_codes([_column(clicks, KIND)], np.array([rows]), catalog.kinds)


def _names(clicks: Any) -> Sequence[str]:
    """Names of the columns."""
    return list(clicks) if isinstance(clicks, Mapping) else list(getattr(clicks, "columns", ()))


def _column(clicks: Any, name: str) -> Sequence[Any]:
    try:
        column = clicks[name]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"observe: expected columns {list(COLUMNS)}, {name!r} is missing") from error
    if getattr(getattr(column, "dtype", None), "kind", "") == "M" and isinstance(column, np.ndarray):
        column = column.astype("datetime64[us]")  # of nanoseconds numpy would make numbers
    return plain(column, f"observe: {name}")


def _codes(item: Sequence[Id], catalog: Catalog) -> Ints:
    if strange := list(dict.fromkeys(name for name in item if name not in catalog.items)):
        near = get_close_matches(str(strange[0]), [str(name) for name in catalog.items.ids[:100_000]], n=3)
        raise ValueError(
            f"observe: {len(strange)} item ids are not known, the first is {strange[0]!r}"
            f"{f'; near it are {near}' if near else ''}; add_items takes new ones in"
        )
    return catalog.items.encode(item)


def moment(value: Any, second: float) -> Any:
    """A datetime, a date or ISO text in the unit of the model's times, in UTC where it has no zone; else the value."""
    if isinstance(value, str) and ISO.match(value):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        return value
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * (second / 1e6)


def _times(when: Sequence[Any]) -> NDArray[np.float64]:
    try:
        time = np.asarray(when, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"observe: times must be numbers in the units of the data: {error}") from error
    if not np.isfinite(time).all():
        raise ValueError(
            f"observe: time {int(np.argmin(np.isfinite(time)))} is {when[int(np.argmin(np.isfinite(time)))]!r}"
        )
    return time
