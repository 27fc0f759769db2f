"""Screening of new clicks before anything learns from them: second deliveries, floods of one user, clocks that jump."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Dataset, Ints
from metarec.data.examples import filter_interactions
from metarec.data.joining import TWICE, repeats, user_ids

FLOOD = "clicks of users beyond what one may click in a day"
AHEAD = "clicks with a time far after all others"
_FEW = 0.01  # share of the clicks that a wrong clock is believed to make at most


def screened(clicks: Dataset, before: Dataset | None, *, day: float, most: tuple[int, int], jump: float) -> Dataset:
    """The clicks that can be learned from; ``dropped`` counts the others by what is wrong with them.

    A click that is there already counts once. Of one user the first clicks of a day count, those before included.
    Clicks after a gap of more than ``jump`` in everybody's clicks are taken for those of a wrong clock while
    they are no more than a hundredth of all: one of them would make all clicks that come later too early.

    Args:
        clicks: the new ones.
        before: those before them, of the same catalogue; users of any vocabulary.
        day: how long a day is, in the units of the times.
        most: clicks of one user in a day that count, and clicks of one user on one item.
        jump: a gap, in the units of the times.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> some, rest = (filter_interactions(data, rows) for rows in (data.time < 9e5, data.time >= 9e5))
        >>> usual = {"day": 86_400, "most": (200, 10), "jump": 30 * 86_400}
        >>> len(screened(rest, some, **usual)) == len(rest), screened(some, some, **usual).dropped[TWICE] == len(some)
        (True, True)
        >>> sum(screened(rest, some, **{**usual, "most": (2, 2)}).dropped.values()) > 0
        True
    """
    if not len(clicks):
        return clicks
    late = _since(before, clicks, float(clicks.time.min()) - day)
    found = {AHEAD: _is_ahead(clicks, before, jump)}
    user, item, time = (np.concatenate(columns) for columns in zip(late, _columns(clicks), strict=True))
    again = repeats(user, time, item)
    counts = np.flatnonzero(~again)
    flood = np.zeros(len(user), dtype=np.bool_)
    asked = (user[counts],), (user[counts], item[counts])
    flood[counts] = np.any([_place(keys, time[counts], day) >= own for keys, own in zip(asked, most, strict=True)], 0)
    found |= {TWICE: again[len(late[0]) :], FLOOD: flood[len(late[0]) :]}
    wrong, dropped = np.zeros(len(clicks), dtype=np.bool_), dict(clicks.dropped)
    for what, rows in found.items():
        if count := int((rows & ~wrong).sum()):
            dropped[what] = dropped.get(what, 0) + count
        wrong |= rows
    return replace(filter_interactions(clicks, ~wrong), dropped=dropped) if wrong.any() else clicks


def _columns(data: Dataset) -> tuple[Ints, Ints, NDArray[np.float64]]:
    return data.user, data.item, data.time.astype(np.float64)


def _since(before: Dataset | None, clicks: Dataset, since: float) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """User codes as the clicks have them, items and times of the clicks before, from a time on, of the same users."""
    none = np.zeros(0, dtype=np.int64)
    if before is None or not (rows := before.time >= since).any():
        return none, none, np.zeros(0)
    late = filter_interactions(before, rows)
    if late.users is clicks.users:
        return _columns(late)
    users = clicks.users
    codes = [int(users.encode([name])[0]) if name in users else 0 for name in user_ids(late)]
    user = np.repeat(np.array(codes, dtype=np.int64), np.diff(late.offsets))
    return user[user > 0], late.item[user > 0], late.time[user > 0].astype(np.float64)


def _place(keys: tuple[Ints, ...], time: NDArray[np.float64], day: float) -> Ints:
    """How many clicks of the same keys and day are before each."""
    order = np.lexsort((np.arange(len(time)), time, *keys))
    columns = [column[order] for column in (*keys, np.floor(time / day))]
    begins = np.append(True, np.any([column[1:] != column[:-1] for column in columns], 0))
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - first
    return place


def _is_ahead(clicks: Dataset, before: Dataset | None, jump: float) -> NDArray[np.bool_]:
    """Clicks after a gap, if they are few."""
    time = np.sort(clicks.time.astype(np.float64))
    known = 0 if before is None else len(before)
    begin = time[0] if before is None or not known else min(float(before.time.max()), time[0])
    few = len(time) - np.arange(len(time)) <= _FEW * (len(time) + known)
    after = np.flatnonzero((np.diff(time, prepend=begin) > jump) & few)
    return clicks.time >= time[after[0]] if len(after) else np.zeros(len(time), dtype=np.bool_)
