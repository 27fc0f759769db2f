"""Interactions, read block by block so that only codes of them are ever held as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from metarec.data.clock import Times, check_one_unit
from metarec.data.columns import Columns, Rows
from metarec.data.kinds import OtherEvents
from metarec.data.vocabulary import Ints, Vocabulary
from metarec.data.weights import Weights

WAITING = 2
PART = 1 << 18  # rows that are sorted at a time, or a PARTS-th of all
PARTS = 32
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
        weight: (n,) what each weighs; None where no column says.
        kind: (n,) codes of the kinds, from 1; None where no column says them.
        kinds: names of the kinds, in the order of their codes.
        numbered: whether the times only number the rows.
        rows: how many rows there were.
        dropped: what of the file was left out and how much of it.
    """

    users: Vocabulary
    items: Vocabulary
    user: Ints
    item: Ints
    time: Times
    weight: Weights | None
    kind: Codes | None
    kinds: tuple[Any, ...]
    numbered: bool
    rows: int
    dropped: dict[str, int]

    def apart(self, columns: Columns) -> tuple[Events, OtherEvents | None]:
        """Those of the kind that is to be predicted, and the others.

        Raises:
            ValueError: if none is of that kind; names the kinds.
        """
        if self.kind is None:
            return self, None
        target, names = str(columns.asked.target), [str(name) for name in self.kinds]
        if target not in names:
            raise ValueError(
                f"{columns.path}: column {columns.asked.kind!r} has no row of the kind {target!r} that is to be "
                f"predicted; its kinds are {names[:20]}: pass target= one of them"
            )
        own = names.index(target)
        kinds = (target, *names[:own], *names[own + 1 :])
        code = np.array([0, *(kinds.index(name) for name in names)])[self.kind]
        asked, rest = code == 0, code > 0
        weight = None if self.weight is None else self.weight[asked]
        columns_of = ((self.user[rows], self.item[rows], self.time[rows]) for rows in (asked, rest))
        (user, item, time), others = columns_of
        clicks = replace(self, user=user, item=item, time=time, weight=weight, kind=None)
        return clicks, OtherEvents(kinds, *others, code[rest])


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
    users, items, kinds, times = _Ids(), _Ids(), _Ids(), _Moments()
    weights: list[Weights] = []
    start = rows = 0
    for block in blocks:
        rows += len(block)
        clicks = columns.clicks(block)
        users.add(clicks.ids(columns.asked.user))
        items.add(clicks.ids(columns.asked.item))
        number = np.arange(start, start + len(clicks), dtype=np.int64)
        times.add(number if columns.time is None else clicks.times(columns.time))
        weights.append(columns.weights(clicks))
        for name in columns.asked.kinds:
            kinds.add(clicks.ids(name))
        start += len(clicks)
    dropped = columns.finish()
    user_ids, user = users.encoded("user", whole_numbers=whole_numbers[0])
    item_ids, item = items.encoded("item", known_items, whole_numbers=whole_numbers[1])
    time = times.joined()
    if columns.time is not None:
        check_one_unit(time, f"{source}: column {columns.time!r}")
    order = _order(user, time, counts := np.bincount(user, minlength=user_ids.size))
    del user
    time = cast(Times, time[order])
    items_in_order = _gathered(item, order)
    weight = np.concatenate(weights)[order] if columns.asked.weights else None
    names, kind = kinds.encoded("kind", whole_numbers=False) if columns.asked.kinds else (None, None)
    kind = None if kind is None else kind[order]
    del item, order
    user_of = np.repeat(np.arange(user_ids.size), counts)
    columns_read = (user_of, items_in_order, time, weight, kind, () if names is None else names.ids)
    numbered = columns.time is None
    return Events(user_ids, item_ids, *columns_read, numbered=numbered, rows=rows, dropped=dropped)


def _joined(parts: list[Codes]) -> Codes:
    """Arrays as one; each is let go as it is copied."""
    out = np.empty(sum(map(len, parts)), dtype=np.int32)
    at = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        out[at : at + len(part)] = part
        at += len(part)
    return out


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
        del self._codes[rows:]
        codes = _joined(self._codes)
        for at in range(0, len(codes), PART):
            codes[at : at + PART] = code[codes[at : at + PART]]
        ids = self._known.gather(order)
        self._known = self._known.clear()
        return Vocabulary.of_column(ids, what, whole_numbers=whole_numbers), codes


class _Moments:
    """Times that grow by blocks, held in half the memory where those of a block are within 2**32 units."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, NDArray[Any]]] = []

    def add(self, time: Times) -> None:
        first = int(time.min()) if time.dtype == np.int64 and len(time) else 0
        near = time.dtype == np.int64 and int(time.max(initial=first)) - first < 1 << 32
        self._parts.append((first, (time - first).astype(np.uint32)) if near else (0, time))

    def joined(self) -> Times:
        """All of them, int64 where all are whole; each block is let go as it is copied."""
        whole = all(part.dtype != np.float64 for _, part in self._parts)
        out = np.empty(sum(len(part) for _, part in self._parts), dtype=np.int64 if whole else np.float64)
        at = 0
        self._parts.reverse()
        while self._parts:
            first, part = self._parts.pop()
            out[at : at + len(part)] = part if part.dtype != np.uint32 else part.astype(np.int64) + first
            at += len(part)
        return cast(Times, out)


def _distinct(ids: pl.Series) -> tuple[pl.Series, Codes]:
    """The distinct values of a column in order of appearance, and where among them each row's value is."""
    category = ids.cast(pl.Categorical)
    values = category.unique(maintain_order=True)
    code, value_code = category.to_physical().to_numpy(), values.to_physical().to_numpy()
    place = np.zeros(int(value_code.max(initial=0)) + 1, dtype=np.int32)
    place[value_code] = np.arange(len(values))
    return values.cast(pl.String), place[code]


def _order(user: Codes, time: Times, counts: Ints) -> NDArray[Any]:
    """(n,) the rows by user, then time, ties as they were: some users at a time, so that little is held beside it."""
    first = np.append(0, np.cumsum(counts))
    order = np.empty(len(user), dtype=np.int32 if len(user) < 1 << 31 else np.int64)
    part, start = max(PART, len(user) // PARTS), 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(first, first[start] + part, side="right")) - 1)
        rows = np.flatnonzero((user >= start) & (user < stop))
        by_time = torch.sort(torch.from_numpy(time[rows]), stable=True).indices
        by_user = torch.sort(torch.from_numpy(user[rows])[by_time], stable=True).indices
        order[first[start] : first[stop]] = rows[by_time[by_user].numpy()]
        start = stop
    return order


def _gathered(codes: Codes, order: NDArray[Any]) -> Ints:
    """Codes in another order, as int64."""
    out = np.empty(len(order), dtype=np.int64)
    for at in range(0, len(order), PART):
        out[at : at + PART] = codes[order[at : at + PART]]
    return out
