"""Temporal split: users known at a moment upstream, cold users who come later downstream."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.clock import Times
from metarec.data.dataset import Dataset
from metarec.data.item_counts import ItemCounts
from metarec.data.rows import take

Rows = NDArray[np.bool_]


def split_by_time(data: Dataset, at: float, *, min_interactions: int = 4) -> tuple[Dataset, Dataset]:
    """Split into the upstream data to train on and the downstream users who start later.

    Upstream holds the interactions with time <= ``at``; downstream holds all interactions of the users whose first
    interaction is after ``at``. No user is on both sides; what an upstream user does after ``at`` is dropped. Source:
    Pan et al., CIKM 2022; a user's start is the earliest time, not the first row of the file as in the released code.

    Args:
        data: interactions with times.
        at: the moment, in the units of ``data.time``; ``split_time`` finds one.
        min_interactions: users with fewer on their side are dropped.

    Returns:
        Upstream and downstream. They share vocabularies, catalogue and ``warm``, which is (I,) bool and True for the
        items that occur in the upstream returned. ``dropped`` of each counts what was left out on that side: with what
        both hold, the interactions add up to all.

    Raises:
        ValueError: if ``at`` is not finite, ``min_interactions`` is below 1, or a side would be empty.

    Example:
        >>> from metarec.datasets import movietweetings
        >>> data = movietweetings()
        >>> up, down = split_by_time(data, at=split_time(data, cold_users=0.2))
        >>> up.name, len(up.user_codes), down.name, len(down.user_codes)
        ('movietweetings upstream', 4241, 'movietweetings downstream', 1348)
    """
    if not math.isfinite(at):
        raise ValueError(f"split_by_time: at must be a finite time, got {at}")
    if min_interactions < 1:
        raise ValueError(f"split_by_time: min_interactions must be at least 1, got {min_interactions}")
    if np.issubdtype(data.time.dtype, np.integer):
        at = math.floor(at)
    later_user = np.repeat(_starts(data) > at, np.diff(data.offsets))
    before = data.time <= at
    up_rows, up_short = _enough(data, before, min_interactions)
    down_rows, down_short = _enough(data, later_user, min_interactions)
    _check_sides(data, at, min_interactions, up_rows, down_rows)
    warm = np.zeros_like(data.warm)
    warm[data.item[up_rows]] = True
    after = {"interactions after the split by upstream users": int((~before & ~later_user).sum())}
    up = _side(data, "upstream", up_rows, warm, _short("upstream", min_interactions, *up_short) | after)
    down = _side(data, "downstream", down_rows, warm, _short("downstream", min_interactions, *down_short))
    share = up.repeat_share if data.upstream_repeat_share is None else data.upstream_repeat_share
    counts = ItemCounts.of(up.user, up.item, up.catalog.size)
    known: dict[str, Any] = {"upstream_repeat_share": share, "upstream_counts": counts}
    earlier = up.others and up.others.until(at)
    return replace(up, others=earlier, **known), replace(down, **known)


def split_time(data: Dataset, cold_users: float = 0.2) -> int | float:
    """Choose the split time: the latest after which at least this share of users has its first interaction.

    Args:
        data: interactions with times.
        cold_users: the share of the users to come after the split, between 0 and 1; users who start at the same
            time stay together, so the share may come out larger.

    Returns:
        A value for ``split_by_time(data, at=...)``, int where the times are.

    Raises:
        ValueError: if ``cold_users`` is not between 0 and 1, or no time leaves users on both sides.

    Example:
        >>> from metarec.datasets import movietweetings
        >>> split_time(movietweetings(), cold_users=0.2)
        1375260596
    """
    if not 0 < cold_users < 1:
        raise ValueError(f"split_time: cold_users must be between 0 and 1, got {cold_users}")
    start, users = np.unique(_starts(data), return_counts=True)
    later = users.sum() - users.cumsum()
    enough = np.flatnonzero((later > 0) & (later >= cold_users * users.sum() - 1e-9))
    if len(start) == 1:
        raise ValueError(f"split_time: all users of {data.name} start at {start[0]}, so none is later; {_told(data)}")
    if not len(enough):
        raise ValueError(
            f"split_time: no time in {data.name} has {cold_users:.0%} of the users start after it, and some before; "
            f"at most {later[0] / users.sum():.0%} start after {start[0]}, the first: ask for a smaller share"
        )
    at: int | float = start[enough[-1]].item()
    return at


def _starts(data: Dataset) -> Times:
    """(u,) the earliest time of each user of ``user_codes``."""
    if not len(data):
        raise ValueError(f"{data.name}: no interactions to split")
    return data.time[data.offsets[:-1]]


def _enough(data: Dataset, rows: Rows, least: int) -> tuple[Rows, tuple[int, int]]:
    """The rows of users who have at least ``least`` of them; how many users have fewer, and how many rows those are."""
    count = np.bincount(data.user[rows], minlength=data.users.size)
    few = count[(count > 0) & (count < least)]
    return rows & (count >= least)[data.user], (len(few), int(few.sum()))


def _short(side: str, least: int, users: int, rows: int) -> dict[str, int]:
    who = f"{side} users with fewer than {least} interactions"
    return {who: users, f"interactions of {who}": rows}


def _check_sides(data: Dataset, at: float, least: int, up: Rows, down: Rows) -> None:
    empty = [name for name, rows in (("upstream", up), ("downstream", down)) if not rows.any()]
    if not empty:
        return
    raise ValueError(
        f"split_by_time: no {' and no '.join(empty)} users with at least {least} interactions at {at}; {_told(data)}, "
        f"and its users start until {_starts(data).max()}: choose `at` between, e.g. split_time(data, cold_users=0.2)"
    )


def _told(data: Dataset) -> str:
    """What the times are, and that they are no times where the file had none."""
    first, last, count = data.time.min(), data.time.max(), len(data)
    told = f"the times of {data.name} go from {first} to {last}"
    if first == 0 and last == count - 1 and len(np.unique(data.time)) == count:
        told += (
            " and number the rows, as where the .inter file has no column like timestamp:float for times (if the "
            "column is called otherwise: load_atomic(..., time_field=...))"
        )
    return told


def _side(data: Dataset, side: str, rows: Rows, warm: Rows, counts: dict[str, int]) -> Dataset:
    """The interactions of one side as a data set of its own."""
    return take(
        data,
        rows,
        warm=warm,
        name=f"{data.name} {side}",
        dropped={**data.dropped, **{what: count for what, count in counts.items() if count}},
    )
