"""The histories of the users whose clicks were observed while a model was served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Dataset, Ints
from metarec.data.examples import filter_interactions
from metarec.data.kinds import every_event
from metarec.data.vocabulary import Id


@dataclass(frozen=True)
class Observed:
    """What new clicks were taken in.

    Attributes:
        clicks: how many, or events of all kinds.
        users: how many users made them.
        new_users: ids of those who were not known before.
        not_counted: so many of the clicks moved no count, as their users clicked too often that day.
    """

    clicks: int
    users: int
    new_users: tuple[Any, ...]
    not_counted: int = 0


class Histories:
    """The last clicks of the users who were observed, by id.

    Args:
        length: clicks kept of each.
        most: clicks of one user in a day that count, and clicks of one user on one item.

    Attributes:
        until: time of the last click; None before any.
        not_counted: clicks so far that moved no count.
    """

    def __init__(self, length: int, most: tuple[int, int]) -> None:
        self.length, self.most = length, most
        self.not_counted = 0
        self._day = -np.inf  # of the last click
        self._today: Counter[tuple[Any, ...]] = Counter()  # its clicks by (day, user), and by (day, user, item)
        self.until: float | None = None
        self._of: dict[Id, tuple[Ints, float]] = {}

    def __contains__(self, user: object) -> bool:
        return user in self._of

    def __len__(self) -> int:
        return len(self._of)

    def of(self, user: Id) -> tuple[Ints, float]:
        """Item codes of a user's last clicks in time order, and the time of the last.

        Raises:
            ValueError: if no click of the user was observed.
        """
        if user not in self._of:
            raise ValueError(f"user {user!r}: no click was observed; observe clicks first, or adapt to a history")
        return self._of[user]

    def extend(self, clicks: Dataset, day: float, count: Callable[[Dataset], object]) -> Observed:
        """Take clicks in that come after all others; floods of one user are left out of what is counted.

        Args:
            clicks: the new ones.
            day: how long a day is, in the units of the times.
            count: is given the clicks that count, if there are any; where it raises, nothing has changed.
        """
        counts, tally = self._within(clicks, day)
        if counts.any():
            count(clicks if counts.all() else filter_interactions(clicks, counts))
        left_out = int((~counts).sum())
        self.not_counted += left_out
        self._today.update(tally)
        if len(clicks) and clicks.time.max() // day > self._day:
            self._day = float(clicks.time.max() // day)
            self._today = Counter({key: n for key, n in self._today.items() if key[0] == self._day})
        user, code, time = every_event(clicks)
        starts = np.append(np.flatnonzero(np.diff(user, prepend=0)), len(user))
        ids, new = clicks.users.decode(user[starts[:-1]].tolist()), []
        for name, first, last in zip(ids, starts[:-1], starts[1:], strict=True):
            before = self._of.get(name)
            if before is None:
                new.append(name)
            own = code[first:last] if before is None else np.append(before[0], code[first:last])
            self._of[name] = own[-self.length :].copy(), float(time[last - 1])
        if len(user):
            self.until = max(float(time.max()), -np.inf if self.until is None else self.until)
        return Observed(len(user), len(ids), tuple(new), left_out)

    def _within(self, clicks: Dataset, day: float) -> tuple[NDArray[np.bool_], Counter[tuple[Any, ...]]]:
        """(n,) which clicks count, the first of a user in a day and of those on one item; and how many there are."""
        counts, tally = np.ones(len(clicks), dtype=np.bool_), Counter[tuple[Any, ...]]()
        columns = clicks.users.decode(clicks.user.tolist()), clicks.item.tolist(), (clicks.time // day).tolist()
        for row, (user, item, today) in enumerate(zip(*columns, strict=True)):
            for key, most in zip(((today, user), (today, user, item)), self.most, strict=True):
                tally[key] += 1
                counts[row] &= self._today[key] + tally[key] <= most
        return counts, tally

    def copy(self) -> Histories:
        """The same users; what is observed by one is not in the other."""
        out = Histories(self.length, self.most)
        out.until, out._of = self.until, dict(self._of)
        out.not_counted, out._day, out._today = self.not_counted, self._day, Counter(self._today)
        return out
