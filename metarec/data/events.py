"""Interactions, read block by block so that only codes of them are ever held as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from metarec.data.clock import Times, check_one_unit
from metarec.data.columns import Columns, Rows
from metarec.data.vocabulary import Ints, Vocabulary

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
        rows: how many rows there were.
        dropped: what of the file was left out and how much of it.
    """

    users: Vocabulary
    items: Vocabulary
    user: Ints
    item: Ints
    time: Times
    numbered: bool
    rows: int
    dropped: dict[str, int]


def read_events(
    source: Path | str,
    columns: Columns,
    blocks: Iterable[Rows],
    known_items: Sequence[pl.Series] = (),
    whole_numbers: tuple[bool, bool] = (False, False),
) -> Events:
    """Interactions as codes; see ``load_atomic`` and ``Dataset.from_frame``.

    Args:
        source: where they come from, for messages.
        columns: which columns are read.
        blocks: the rows, some at a time.
        known_items: columns of item ids, as text, that the vocabulary is to hold too.
        whole_numbers: whether the ids of users, and those of items, are whole numbers.

    Raises:
        ValueError: if the rows are not as described there, or there are none.
    """
    users, items = _Ids(), _Ids()
    times: list[Times] = []
    start = rows = 0
    for block in blocks:
        rows += len(block)
        clicks = columns.clicks(block)
        users.add(clicks.ids(columns.asked.user))
        items.add(clicks.ids(columns.asked.item))
        numbered = np.arange(start, start + len(clicks), dtype=np.int64)
        times.append(numbered if columns.time is None else clicks.times(columns.time))
        start += len(clicks)
    dropped = columns.finish()
    try:
        user_ids, user = users.encoded("user", whole_numbers=whole_numbers[0])
        item_ids, item = items.encoded("item", known_items, whole_numbers=whole_numbers[1])
    except ValueError as reason:
        raise ValueError(f"{source}: {reason}") from None
    time = cast(Times, np.concatenate(times))
    times.clear()
    if columns.time is not None:
        check_one_unit(time, f"{source}: column {columns.time!r}")
    order = _order(user, time)
    ordered = (user[order].astype(np.int64), item[order].astype(np.int64), time[order])
    return Events(user_ids, item_ids, *ordered, numbered=columns.time is None, rows=rows, dropped=dropped)


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

    def encoded(self, what: str, others: Sequence[pl.Series] = (), *, whole_numbers: bool) -> tuple[Vocabulary, Codes]:
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
        texts = self._known.gather(order).to_list()
        return Vocabulary.of_texts(texts, what, whole_numbers=whole_numbers), codes


def _distinct(ids: pl.Series) -> tuple[pl.Series, Codes]:
    """The distinct values of a column in order of appearance, and where among them each row's value is."""
    category = ids.cast(pl.Categorical)
    values = category.unique(maintain_order=True)
    code, value_code = category.to_physical().to_numpy(), values.to_physical().to_numpy()
    place = np.zeros(int(value_code.max(initial=0)) + 1, dtype=np.int32)
    place[value_code] = np.arange(len(values))
    return values.cast(pl.String), place[code]


def _order(user: Codes, time: Times) -> Ints:
    """(n,) the rows by user, then time, ties as they were: two stable sorts, of which torch has the fast ones."""
    by_time = torch.sort(torch.from_numpy(time), stable=True).indices
    by_user = torch.sort(torch.from_numpy(user)[by_time], stable=True).indices
    order: Ints = by_time[by_user].numpy()
    return order
