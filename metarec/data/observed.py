"""The histories of the users whose clicks were observed while a model was served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from metarec.data.dataset import Dataset, Ints
from metarec.data.kinds import every_event
from metarec.data.vocabulary import Id


@dataclass(frozen=True)
class Observed:
    """What new clicks were taken in.

    Attributes:
        clicks: how many, or events of all kinds.
        users: how many users made them.
        new_users: ids of those who were not known before.
    """

    clicks: int
    users: int
    new_users: tuple[Any, ...]


class Histories:
    """The last clicks of the users who were observed, by id.

    Args:
        length: clicks kept of each.
    """

    def __init__(self, length: int) -> None:
        self.length = length
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

    def extend(self, clicks: Dataset) -> Observed:
        """Take clicks in that come after all others."""
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
        return Observed(len(user), len(ids), tuple(new))

    def copy(self) -> Histories:
        """The same users; what is observed by one is not in the other."""
        out = Histories(self.length)
        out.until, out._of = self.until, dict(self._of)
        return out
