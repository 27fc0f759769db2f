"""The interactions of an atomic file, read block by block so that only codes of them are ever held as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from metarec.data.clock import Times, check_one_unit
from metarec.data.columns import Asked, Columns
from metarec.data.vocabulary import Ints, Vocabulary
from metarec.data.table import Table, read_blocks

LOOKED_AT = 1 << 16  # bytes by which the columns are told apart
WAITING = 4
FEW = 1 << 19  # ids that may wait in any case
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Events:
    """Interactions sorted by user, then time, ties in file order.

    Attributes:
        users: the ids of the users, sorted.
        items: the ids of the items, sorted, with those that were known before.
        user: (n,) int64 user codes.
        item: (n,) int64 item codes.
        time: (n,) int64 where all times are whole numbers, and float64 otherwise.
        numbered: whether the times only number the rows.
        dropped: what of the file was left out and how much of it.
    """

    users: Vocabulary
    items: Vocabulary
    user: Ints
    item: Ints
    time: Times
    numbered: bool
    dropped: dict[str, int]


def read_events(path: Path, asked: Asked, known_items: Sequence[pl.Series] = ()) -> Events:
    """Read an ``.inter`` file; see ``load_atomic``.

    Args:
        path: the file.
        asked: what the caller says of the columns.
        known_items: columns of item ids that the vocabulary is to hold too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not as ``load_atomic`` describes it, or holds no interactions.
    """
    users, items = _Ids(), _Ids()
    times: list[Times] = []
    start = 0
    columns = Columns(next(read_blocks(path, LOOKED_AT)), asked)
    for block in read_blocks(path):
        clicks = columns.clicks(block)
        users.add(clicks.ids("user_id"))
        items.add(clicks.ids("item_id"))
        times.append(_times(clicks, columns.time, start))
        start += len(clicks)
    dropped = columns.finish()
    try:
        user_ids, user = users.encoded("user")
        item_ids, item = items.encoded("item", known_items)
    except ValueError as reason:
        raise ValueError(f"{path}: {reason}") from None
    time = cast(Times, np.concatenate(times))
    times.clear()
    if columns.time is not None:
        check_one_unit(time, f"{path}: column {columns.time!r}")
    order = _order(user, time)
    rows = (user[order].astype(np.int64), item[order].astype(np.int64), time[order])
    return Events(user_ids, item_ids, *rows, numbered=columns.time is None, dropped=dropped)


class _Ids:
    """A column of ids that grows by blocks: the ids once, in order of appearance, and where among them each row is.

    The distinct ids of new blocks wait until they are ``WAITING`` times as many as the known ones, so that few are
    compared twice and memory is bounded by the ids, not by the rows.
    """

    def __init__(self) -> None:
        self._known = pl.Series(dtype=pl.String)
        self._codes: list[Codes] = []
        self._waiting: list[pl.Series] = []

    def add(self, ids: pl.Series) -> None:
        values, code = _distinct(ids)
        self._waiting.append(values)
        self._codes.append(code)
        if sum(map(len, self._waiting)) > max(FEW, WAITING * len(self._known)):
            self._merge()

    def _merge(self) -> None:
        """Make the waiting ids known; the codes of those already known stay what they are."""
        blocks = [self._known, *self._waiting]
        self._known, place = _distinct(pl.concat(blocks))
        places = np.split(place, np.cumsum([len(values) for values in blocks])[:-1])[1:]
        first = len(self._codes) - len(places)
        self._codes[first:] = [own[code] for own, code in zip(places, self._codes[first:], strict=True)]
        self._waiting.clear()

    def encoded(self, what: str, others: Sequence[pl.Series] = ()) -> tuple[Vocabulary, Codes]:
        """The sorted vocabulary of these and other ids, and the codes of the rows, which are held no longer."""
        rows = len(self._codes)
        for ids in others:
            self.add(ids)
        self._merge()
        order = self._known.arg_sort().to_numpy()
        code = np.empty(len(order), dtype=np.int32)
        code[order] = np.arange(1, len(order) + 1)
        codes = code[np.concatenate(self._codes[:rows])]
        self._codes.clear()
        return Vocabulary(self._known.gather(order).to_list(), what), codes


def _distinct(ids: pl.Series) -> tuple[pl.Series, Codes]:
    """The distinct values of a column in order of appearance, and where among them each row's value is."""
    category = ids.cast(pl.Categorical)
    values = category.unique(maintain_order=True)
    code, value_code = category.to_physical().to_numpy(), values.to_physical().to_numpy()
    place = np.zeros(int(value_code.max(initial=0)) + 1, dtype=np.int32)
    place[value_code] = np.arange(len(values))
    return values.cast(pl.String), place[code]


def _times(events: Table, field: str | None, start: int) -> Times:
    """(n,) times in full precision; the row number, from ``start``, where there is no time column."""
    if field is None:
        return np.arange(start, start + len(events), dtype=np.int64)
    text = events.column(field, "float").str.strip_chars()
    whole = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole.to_numpy()
    number = text.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    bad = np.flatnonzero(~np.isfinite(number))
    if len(bad):
        row = int(bad[0])
        raise events.error(
            row, field, f"{text[row]!r} is not a finite number; expected a time in unix seconds, such as 1362062838"
        )
    if (number == np.floor(number)).all():
        whole = whole.fill_null(pl.Series(number).cast(pl.Int64, strict=False))
    return number if whole.null_count() else whole.to_numpy()


def _order(user: Codes, time: Times) -> Ints:
    """(n,) the rows by user, then time, ties as they were: two stable sorts, of which torch has the fast ones."""
    by_time = torch.sort(torch.from_numpy(time), stable=True).indices
    by_user = torch.sort(torch.from_numpy(user)[by_time], stable=True).indices
    order: Ints = by_time[by_user].numpy()
    return order
