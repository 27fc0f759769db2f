"""Events of other kinds than the clicks that are to be predicted, and windows of all of them in time order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.catalog import Catalog
from metarec.data.clock import Times
from metarec.data.vocabulary import Ints
from metarec.functional.kinds import coded
from metarec.types import Examples


@dataclass(frozen=True, eq=False)
class OtherEvents:
    """Events that are read in histories and never predicted, sorted by user, then time: views beside purchases, say.

    An event at the very moment of a click stands after it: which came first is not known.

    Attributes:
        names: of all kinds, that of the clicks first.
        user: (m,) int64 user codes.
        item: (m,) int64 item codes.
        time: (m,) in the units of the clicks.
        kind: (m,) int64, 1..K-1.

    Raises:
        ValueError: if the columns differ in length or are not sorted, a kind is not one of ``names``, or a name stands
            twice.

    Example:
        >>> one = np.array([1, 1])
        >>> others = OtherEvents(("buy", "view"), one, np.array([3, 4]), np.array([5, 9]), one)
        >>> len(others), len(others.until(6)), others
        (2, 1, 2 view)
    """

    names: tuple[str, ...]
    user: Ints
    item: Ints
    time: Times
    kind: Ints

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.user, self.item, self.time, self.kind)}
        if len(lengths) > 1:
            raise ValueError(f"other events: expected columns of one length, got {sorted(lengths)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"other events: a kind stands twice in {list(self.names)}")
        if len(self) and not (self.kind.min() >= 1 and self.kind.max() < len(self.names)):
            raise ValueError(f"other events: kinds must be in 1..{len(self.names) - 1}, the places in {self.names}")
        same = self.user[1:] == self.user[:-1]
        if (self.user[1:] < self.user[:-1]).any() or (same & (self.time[1:] < self.time[:-1])).any():
            raise ValueError("other events: they must be sorted by user, then time")

    def check_codes(self, users: int, catalog: Catalog, where: str) -> None:
        """Check that all users, items and kinds are those of a data set.

        Args:
            users: U, with padding.
            catalog: the items.
            where: what is checked, for messages.

        Raises:
            ValueError: if one is not.
        """
        if self.names != catalog.kinds:
            raise ValueError(f"{where}: other events: the kinds are {self.names}, in the catalogue {catalog.kinds}")
        for name, codes, size in (("user", self.user, users), ("item", self.item, catalog.size)):
            if len(self) and not 1 <= codes.min() <= codes.max() < size:
                raise ValueError(f"{where}: other events: expected {name} codes in 1..{size - 1}")

    @classmethod
    def sorted(cls, names: Sequence[str], user: Ints, item: Ints, time: Times, kind: Ints) -> Self:
        """From columns in any order; ties as they were."""
        order = np.lexsort((np.arange(len(user)), time, user))
        return cls(tuple(names), user[order], item[order], time[order], kind[order])

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        counts = np.bincount(self.kind, minlength=len(self.names)).tolist()
        return ", ".join(f"{count:,} {name}" for name, count in zip(self.names[1:], counts[1:], strict=True))

    def filter(self, kept: NDArray[np.bool_]) -> Self:
        """Those of an (m,) mask."""
        columns: dict[str, Any] = {name: getattr(self, name)[kept] for name in ("user", "item", "time", "kind")}
        return replace(self, **columns)

    def named(self, names: tuple[str, ...]) -> Self:
        """The same under the kinds of a model, by name.

        Raises:
            ValueError: if one is none of them, or another kind is to be predicted.
        """
        if strange := [name for name in self.names if name not in names]:
            raise ValueError(f"other events: unknown kind {strange[0]!r}; the model knows {list(names)}")
        if self.names[0] != names[0]:
            raise ValueError(f"other events: the model predicts {names[0]!r}, the clicks are {self.names[0]!r}")
        return replace(self, names=names, kind=np.array([names.index(name) for name in self.names])[self.kind])

    def recoded(self, items: Ints) -> Self:
        """Under the codes of another catalogue, (I,) by item code; those on items that it lacks, 0, are left out."""
        kept = items[self.item] > 0
        return replace(self.filter(kept), item=items[self.item[kept]])

    def until(self, time: float) -> Self:
        """Those that came no later than a time."""
        return self.filter(self.time <= time)

    def of_users(self, users: Ints) -> Self:
        """Those of some users."""
        return self.filter(np.isin(self.user, users))


class EventWindows:
    """The clicks and all other events of each user as one sequence, of which the last so many are read.

    Args:
        user: (n,) of the clicks, sorted by user, then time.
        item: (n,) likewise.
        time: (n,) likewise.
        others: the other events.
        length: E, most events that are read.

    Example:
        >>> one = np.array([1, 1])
        >>> others = OtherEvents(("buy", "view"), one, np.array([3, 4]), np.array([5, 9]), one)
        >>> windows = EventWindows(np.array([1, 1]), np.array([7, 8]), np.array([6, 9]), others, length=50)
        >>> windows.code.tolist() == [coded(3, 1), 7, 8, coded(4, 1)], windows.place.tolist()
        (True, [1, 2])
    """

    def __init__(self, user: Ints, item: Ints, time: Times, others: OtherEvents, length: int) -> None:
        clicks = len(user)
        owner = np.concatenate([user, others.user])
        later = np.arange(len(owner)) >= clicks
        order = np.lexsort((np.arange(len(owner)), later, np.concatenate([time, others.time]), owner))
        place = np.empty(len(owner), dtype=np.int64)
        place[order] = np.arange(len(owner))
        owner = owner[order]
        begins = np.searchsorted(owner, owner, side="left")
        self.user, self.time = owner, np.concatenate([time, others.time])[order]
        self.code: Ints = np.concatenate([item, coded(others.item, others.kind)])[order]
        self.place: Ints = place[:clicks]  # of each click among all events
        self.first: Ints = begins[self.place]  # where each click's user begins among them
        self.length = length

    def starts(self, asked: Ints) -> Ints:
        """(B,) where the windows begin that end right before some clicks, given by their rows."""
        return np.maximum(self.first[asked], self.place[asked] - self.length)

    def drawn(self, first: Ints, clicks: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """(B,) rows where windows begin and how many clicks they hold, at random among users with too many events.

        Args:
            first: (B,) rows where the users' clicks begin.
            clicks: (B,) how many they are, at least 3.
            rng: draws the clicks that windows end at.
        """
        end = first + clicks - 1
        many = self.place[end] - self.first[end] > self.length
        end = np.where(many, first + rng.integers(2, clicks), end)
        start = np.maximum(np.searchsorted(self.place, self.place[end] - self.length), first)
        start = np.minimum(start, end - 2)
        return start, end - start + 1

    def beside(self, examples: Examples, start: Ints, last: Ints, window: Ints) -> Examples:
        """Examples with the events of all kinds that they may read.

        Args:
            examples: of B users; position 0 is the click in row ``start``.
            start: (B,) rows of the clicks.
            last: (B,) the last position that is read.
            window: (B,) where the windows begin.
        """
        rows = start[:, None] + examples.position.numpy() + 1
        real = examples.weight.numpy() > 0
        at = self.place[np.where(real, rows, start[:, None])] - 1 - window[:, None]
        read = np.where(real, np.maximum(at, -1), -1)
        ends = self.place[start + last] - window
        column = np.arange(max(1, int(ends.max(initial=0))))
        inside = column < ends[:, None]
        events = np.where(inside, self.code[np.where(inside, window[:, None] + column, 0)], 0)
        return replace(examples, events=torch.from_numpy(events), read=torch.from_numpy(read))


def joined_others(parts: Sequence[OtherEvents | None], codes: Sequence[Ints | None]) -> OtherEvents | None:
    """The other events of several data sets, each once; None where none has any.

    Args:
        parts: of each.
        codes: (U,) of each, the codes that its users have now, by their code; None where they stay.

    Raises:
        ValueError: if the kinds are not the same.

    Example:
        >>> one = np.array([1])
        >>> views = OtherEvents(("buy", "view"), one, np.array([3]), np.array([5]), one)
        >>> both = joined_others([views, None, views], [None, None, np.array([0, 2])])
        >>> both.user.tolist(), joined_others([views, views], [None, None])
        ([1, 2], 1 view)
    """
    found = [(part, code) for part, code in zip(parts, codes, strict=True) if part is not None]
    if not found:
        return None
    names = found[0][0].names
    if strange := next((part.names for part, _ in found if part.names != names), None):
        raise ValueError(f"other events: the kinds are {list(names)} in one place and {list(strange)} in the other")
    user = np.concatenate([part.user if code is None else code[part.user] for part, code in found])
    item, time, kind = (np.concatenate([getattr(part, n) for part, _ in found]) for n in ("item", "time", "kind"))
    out = OtherEvents.sorted(names, user, item, time, kind)
    order = np.lexsort((out.kind, out.item, out.time, out.user))
    again = np.ones(max(0, len(out) - 1), dtype=np.bool_)
    for column in (out.user, out.time, out.item, out.kind):
        again &= column[order][1:] == column[order][:-1]
    kept = np.ones(len(out), dtype=np.bool_)
    kept[order[1:][again]] = False
    return out.filter(kept)


def every_event(data: Any) -> tuple[Ints, Ints, Times]:
    """User, coded item and time of a data set's events of all kinds, sorted by user, then time.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> every_event(data)[1] is data.item
        True
    """
    if data.others is None:
        return data.user, data.item, data.time
    windows = EventWindows(data.user, data.item, data.time, data.others, length=1)
    return windows.user, windows.code, windows.time
