"""Everybody's clicks in the order of time, to which later clicks are added."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.dataset import Catalog, Dataset, Ints, Vocabulary
from metarec.data.vocabulary import Id, pack_ids, unpack_ids
from metarec.files import expect_tensor

Floats = NDArray[np.float64]
T = TypeVar("T", bound=np.generic)

_lock = threading.Lock()  # of all stores: one thread adds clicks at a time


def later_than(time: float) -> float:
    """A time strictly after another: one unit, or more where nanoseconds leave no room for one in float64."""
    return math.nextafter(time + 1, math.inf)


class _Store:
    """Columns that grow at the end, shared by all logs that begin alike; what is written is never changed.

    Attributes:
        item, time, before: of each click; the click of the same user before it, -1 where there is none.
        used: so many clicks are there, the rest is room.
        users: ids of the users whom it began with, by code.
        added: codes of users who came later.
        last: (u,) the last click of each user, by code, -1 where there is none.
    """

    def __init__(self, item: Ints, time: Floats, before: Ints, users: Vocabulary, last: Ints) -> None:
        self.item, self.time, self.before, self.used = item, time, before, len(item)
        self.users, self.added, self.last = users, dict[Id, int](), last

    def fork(self, size: int) -> _Store:
        """A store of its own with the first so many clicks, and their users."""
        item, time, before = self.item[:size].copy(), self.time[:size].copy(), self.before[:size].copy()
        last = self.tails(size)
        added = {name: code for name, code in self.added.items() if last[code] >= 0}  # the first that were added
        out = _Store(item, time, before, self.users, last[: self.users.size + len(added)])
        out.added = added
        return out

    def tails(self, size: int) -> Ints:
        """The last of the first so many clicks of each user, by code."""
        last = self.last[: self.users.size + len(self.added)].copy()
        while (late := last >= size).any():
            last[late] = self.before[last[late]]
        return last

    def codes(self, ids: Sequence[Id]) -> Ints:
        """Codes of users; those who are new get the next."""
        known = iter(self.users.encode([name for name in ids if name in self.users]).tolist())
        out = [next(known) if name in self.users else self._code(name) for name in ids]
        self.last = _roomy(self.last, self.users.size + len(self.added), -1)
        return np.array(out, dtype=np.int64)

    def _code(self, name: Id) -> int:
        return self.added.setdefault(name, self.users.size + len(self.added))

    def append(self, user: Ints, item: Ints, time: Floats) -> None:
        """Add clicks, all of a user together, in the order of time."""
        order = np.argsort(time, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(self.used, self.used + len(order))
        first = np.flatnonzero(np.diff(user, prepend=-1))
        before = np.append(-1, place[:-1])
        before[first] = self.last[user[first]]
        stop = self.used + len(order)
        self.item, self.time = _roomy(self.item, stop, 0), _roomy(self.time, stop, 0)
        self.before = _roomy(self.before, stop, -1)
        for column, new in ((self.item, item), (self.time, time), (self.before, before)):
            column[self.used : stop] = new[order]
        self.last[user[np.append(first[1:], len(user)) - 1]] = place[np.append(first[1:], len(user)) - 1]
        self.used = stop


def _roomy(column: NDArray[T], size: int, fill: int) -> NDArray[T]:
    """A column of at least so many rows: itself, or a copy with half as much again."""
    if size <= len(column):
        return column
    out = np.full(size + size // 2, fill, dtype=column.dtype)
    out[: len(column)] = column
    return out


@dataclass(frozen=True, eq=False)
class ClickLog:
    """The first ``size`` clicks of a store: a value that clicks added later leave alone.

    Example:
        >>> people, catalog = Vocabulary(["ann", "bob"], "user"), Catalog(Vocabulary("abc"))
        >>> data = Dataset(people, catalog, user=np.array([1, 1, 2]), item=np.array([3, 1, 2]),
        ...                time=np.array([5, 8, 7]), warm=np.array([False, True, True, True]))
        >>> log = ClickLog.of(data)
        >>> log.item.tolist(), log.before.tolist(), log.now
        ([3, 2, 1], [-1, -1, 0], 9.000000000000002)
        >>> more = log.followed_by(Dataset(people, catalog, np.array([2]), np.array([1]), np.array([9]), data.warm))
        >>> more.before.tolist(), len(log)
        ([-1, -1, 0, 1], 3)
    """

    _store: _Store = field(repr=False)
    size: int

    @classmethod
    def of(cls, data: Dataset) -> Self:
        """The clicks of a data set; ties in time stand by user, then as they were."""
        store = _Store(
            np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), data.users, np.full(data.users.size, -1)
        )
        if len(data):
            store.append(data.user.astype(np.int64), data.item.astype(np.int64), data.time.astype(np.float64))
        return cls(store, store.used)

    def __len__(self) -> int:
        return self.size

    @property
    def item(self) -> Ints:
        """(n,) item codes."""
        return self._store.item[: self.size]

    @property
    def time(self) -> Floats:
        """(n,) ascending."""
        return self._store.time[: self.size]

    @property
    def before(self) -> Ints:
        """(n,) where the same user's click before stands; -1 for a first click."""
        return self._store.before[: self.size]

    @property
    def now(self) -> float:
        """A time after all clicks."""
        return later_than(float(self.time[-1]))

    def pairs(self, start: int, stop: int, reach: int) -> tuple[Ints, Ints, Floats]:
        """Items, those that the same users clicked up to ``reach`` clicks later, and when, of a range of the latter."""
        item, time, before = self.item, self.time, self.before
        click, earlier = np.arange(start, stop), before[start:stop]
        first, second = [], []
        for _ in range(reach):
            real = earlier >= 0
            click, earlier = click[real], earlier[real]
            first.append(earlier)
            second.append(click)
            earlier = before[earlier]
        one, two = np.concatenate(first), np.concatenate(second)
        return item[one], item[two], time[two]

    def followed_by(self, clicks: Dataset) -> ClickLog:
        """A log with later clicks too, of users of any vocabulary, who are told by their ids.

        Raises:
            ValueError: if a click is earlier than the last one here or of no user; nothing has changed.
        """
        if (strange := np.flatnonzero((clicks.user < 1) | (clicks.user >= clicks.users.size))).size:
            code = clicks.user[strange[0]]
            raise ValueError(f"observe: user code {code} of click {strange[0]} is not in 1..{len(clicks.users)}")
        time, last = clicks.time.astype(np.float64), float(self.time[-1]) if self.size else -math.inf
        if (early := np.flatnonzero(time < last)).size:
            name = clicks.users.ids[int(clicks.user[early[0]]) - 1]
            raise ValueError(
                f"observe: user {name!r} clicked at {clicks.time[early[0]]}, but clicks until {last:.15g} are counted "
                f"already; expected times from {last:.15g} on: give clicks in the order of time"
            )
        if not len(clicks):
            return self
        with _lock:
            store = self._store if self._store.used == self.size else self._store.fork(self.size)
            _check_kind(store, clicks.users)
            own = store.codes([clicks.users.ids[code - 1] for code in clicks.user_codes.tolist()])
            user = np.repeat(own, np.diff(clicks.offsets))
            store.append(user, clicks.item, time)
            return type(self)(store, store.used)

    def tensors(self, *, users: bool = True) -> dict[str, Tensor]:
        """All there is as tensors, for a file; without ``users``, only items and times."""
        out = {"item": torch.from_numpy(self.item.astype(np.int32)), "time": torch.from_numpy(self.time.copy())}
        if not users:
            return out
        store, last = self._store, self._store.tails(self.size)
        ids = [*store.users.ids, *store.added]
        codes = np.flatnonzero(last >= 0)
        out |= {"before": torch.from_numpy(self.before.copy()), "last": torch.from_numpy(last[codes])}
        return out | pack_ids("users", [ids[code - 1] for code in codes.tolist()])

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], items: int, *, users: bool = True) -> Self:
        """The log that :meth:`tensors` put away, of a catalogue with so many rows.

        Raises:
            KeyError, ValueError: if these are not such tensors.
        """
        item = expect_tensor(tensors, "item", torch.int32, 1).numpy().astype(np.int64)
        time = expect_tensor(tensors, "time", torch.float64, 1).numpy()
        check_codes("item", item, items)
        if not len(item) == len(time) or not np.isfinite(time).all() or (time[1:] < time[:-1]).any():
            raise ValueError(f"time must have one finite number for each of {len(item)} clicks, in ascending order")
        if not users:
            return cls(_Store(item, time, np.full(len(item), -1), Vocabulary([], "user"), np.full(1, -1)), len(item))
        before = expect_tensor(tensors, "before", torch.int64, 1).numpy()
        last = expect_tensor(tensors, "last", torch.int64, 1).numpy()
        ids = unpack_ids("users", tensors, "user")
        _check_chains(before, last, len(item), len(ids))
        return cls(_Store(item, time, before, ids, np.append(-1, last)), len(item))


def _check_kind(store: _Store, users: Vocabulary) -> None:
    """See that the ids of new clicks' users are text where those known are, and whole numbers where those are."""
    known = next(iter(store.users.ids or store.added), None)
    if known is not None and type(known) is not type(users.ids[0]):
        raise ValueError(
            f"observe: user id {users.ids[0]!r} is {type(users.ids[0]).__name__}, but those known, such as {known!r}, "
            f"are {type(known).__name__}; give all users' ids in the type of the data"
        )


def _check_chains(before: Ints, last: Ints, clicks: int, users: int) -> None:
    """See that each click is followed by one at most, a later one, and those that are not are the users' last."""
    if len(before) != clicks or (before < -1).any() or (before >= np.arange(len(before))).any():
        raise ValueError(f"before must have an earlier click or -1 for each of {clicks} clicks")
    if len(last) != users or (last < 0).any() or (last >= clicks).any():
        raise ValueError(f"last must have one of {clicks} clicks for each of {users} users")
    if (np.bincount(np.concatenate([before[before >= 0], last]), minlength=clicks) != 1).any():
        raise ValueError("before and last must lead to each click once")


def check_codes(name: str, codes: Ints, items: int) -> None:
    """See that codes are those of items.

    Raises:
        ValueError: if one is not; names it.
    """
    if (bad := np.flatnonzero((codes < 1) | (codes >= items))).size:
        raise ValueError(f"{name} {bad[0]}: expected a code in 1..{items - 1}, got {codes[bad[0]]}")


def check_items(clicks: Dataset, catalog: Catalog) -> None:
    """See that clicks are of the items of a catalogue: the same ids under the same codes.

    Raises:
        ValueError: if one is not; names it.
    """
    own, theirs = catalog.items, clicks.catalog.items
    for code in np.unique(clicks.item).tolist():
        name = repr(theirs.ids[code - 1]) if 1 <= code < theirs.size else "no item"
        if not 1 <= code < own.size or (own is not theirs and name != repr(own.ids[code - 1])):
            expected = repr(own.ids[code - 1]) if 1 <= code < own.size else f"one of 1..{own.size - 1}"
            raise ValueError(
                f"observe: item code {code} is {name} in these clicks; the model's catalogue expects {expected}: make "
                "the clicks on its catalogue, and add_items for items that it lacks"
            )
