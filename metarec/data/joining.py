"""Clicks that follow others: put together, and cut to what a training on the latest of them reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Dataset, Ints, Vocabulary
from metarec.data.examples import filter_interactions
from metarec.data.rows import joined_weights, take
from metarec.data.sampler import EpisodeSampler
from metarec.data.vocabulary import Id
from metarec.types import EpisodeBatch

TWICE = "interactions that were there already"


def followed_by(before: Dataset | None, clicks: Dataset) -> Dataset:
    """Clicks and those after them as one data set; a click that is there already, as of a second delivery, counts once.

    Args:
        before: the earlier clicks; None for none.
        clicks: the later ones, of the same catalogue; users of any vocabulary. Its ``day`` and ``warm`` are taken over.

    Returns:
        All of them; ``dropped`` counts those left out.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> some, more = (filter_interactions(data, data.time <= t) for t in (500_000, 900_000))
        >>> both = followed_by(some, more)
        >>> len(both) == len(more), both.dropped[TWICE] == len(some)
        (True, True)
    """
    users, parts = clicks.users, [clicks] if before is None or not len(before) else [before, clicks]
    codes = [part.user for part in parts]
    if len(parts) > 1 and parts[0].users is not users:
        users = Vocabulary(dict.fromkeys([*user_ids(parts[0]), *user_ids(parts[1])]), "user")
        codes = [_under(users, part) for part in parts]
    user, item = np.concatenate(codes), np.concatenate([part.item for part in parts])
    time = np.concatenate([part.time for part in parts])
    if not np.issubdtype(time.dtype, np.signedinteger):
        time = time.astype(np.float64)
    order = np.lexsort((np.arange(len(time)), time, user))
    weight, dropped = joined_weights(parts), dict(clicks.dropped)
    weight = None if weight is None else weight[order]
    columns: dict[str, Any] = {"user": user[order], "item": item[order], "time": time[order], "weight": weight}
    return _once(replace(clicks, users=users, dropped=dropped, **columns))


def user_ids(data: Dataset) -> list[Id]:
    """Ids of the users who clicked, in the order of their codes."""
    return data.users.decode(data.user_codes.tolist())


def _under(users: Vocabulary, data: Dataset) -> Ints:
    """The user codes of clicks in another vocabulary."""
    return np.repeat(users.encode(user_ids(data)), np.diff(data.offsets))


def _once(data: Dataset) -> Dataset:
    """Every click once; the first of those with the same user, item and time."""
    if not len(data) or not data.duplicates:
        return data
    kept = ~repeats(data.user, data.time, data.item)
    dropped = {**data.dropped, TWICE: data.dropped.get(TWICE, 0) + int((~kept).sum())}
    return take(data, kept, dropped=dropped)


def repeats(user: Ints, time: NDArray[Any], item: Ints) -> NDArray[np.bool_]:
    """(n,) whether the same click stands before each, in three columns of any order.

    Example:
        >>> repeats(np.array([2, 1, 2]), np.array([5, 5, 5]), np.array([7, 7, 7])).tolist()
        [False, False, True]
    """
    order = np.lexsort((np.arange(len(user)), item, time, user))
    again = np.ones(max(0, len(user) - 1), dtype=np.bool_)
    for column in (user, time, item):
        again &= column[order][1:] == column[order][:-1]
    out = np.zeros(len(user), dtype=np.bool_)
    out[order[1:][again]] = True
    return out


def recent(data: Dataset, since: float, clicks: int) -> Dataset:
    """The last so many clicks of each user who clicked from a time on, and of nobody else.

    Example:
        >>> from metarec.datasets import planted
        >>> late = recent(planted(users=60, items=40), since=1_500_000, clicks=5)
        >>> int(np.diff(late.offsets).max()), bool((late.time[late.offsets[1:] - 1] >= 1_500_000).all())
        (5, True)
    """
    late = data.time[data.offsets[1:] - 1] >= since
    return filter_interactions(data, np.repeat(late, np.diff(data.offsets)) & among_last(data, clicks))


def among_last(data: Dataset, clicks: int) -> NDArray[np.bool_]:
    """(n,) whether each click is one of its user's last so many.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> int(among_last(data, 2).sum()) == 2 * len(data.user_codes)
        True
    """
    return np.repeat(data.offsets[1:], np.diff(data.offsets)) - np.arange(len(data)) <= clicks


@dataclass(frozen=True, eq=False)
class RecentSampler(EpisodeSampler):
    """An :class:`~metarec.EpisodeSampler` that asks only for clicks from a time on; earlier ones are history.

    Args:
        since: the time.

    Example:
        >>> from metarec.datasets import planted
        >>> data = recent(planted(users=60, items=40), 1_500_000, 50)
        >>> batch = next(RecentSampler(data, queries=0.5, since=1_500_000).epoch(0))
        >>> bool((batch.query.time[batch.query.weight > 0] >= 1_500_000).all())
        True
    """

    since: float = 0.0

    def _batches(self, epoch: int, own: slice) -> Iterator[EpisodeBatch]:
        for batch in super()._batches(epoch, own):
            query, time = batch.query, batch.query.time
            asked = query.weight if time is None else query.weight * (time >= self.since)
            yield EpisodeBatch(batch.user, batch.support, replace(query, weight=asked))
