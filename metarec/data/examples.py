"""Next-item examples from columns of clicks, and filters of interactions: leave-last-out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.catalog import Catalog
from metarec.data.clock import Times
from metarec.data.dataset import Dataset, Ints
from metarec.data.item_counts import ItemCounts
from metarec.data.rows import take
from metarec.data.weights import Weights
from metarec.types import Examples

CUT = "interactions cut off"
UNKNOWN = "interactions with items that the model does not have"


def build_examples(
    item: Ints,
    start: Ints,
    first: Ints,
    last: Ints,
    *,
    time: Times | None = None,
    second: float = 1.0,
    weight: Weights | None = None,
    own: slice = slice(None),
) -> Examples:
    """Build next-item examples at positions first..last-1 of users whose clicks begin at ``start`` of ``item``.

    They have no negatives yet. The history holds at least the first click, so that no row is padding alone.

    Args:
        item: (n,) item codes of all clicks.
        start: (B,) where the users' clicks begin.
        first: (B,) first position.
        last: (B,) one past the last position.
        time: (n,) times of all clicks, if known.
        second: how many units of ``time`` are a second; the gaps are in seconds.
        weight: (n,) what clicks weigh; all 1 by default.
        own: build the examples of these users only.
    """
    column = np.arange(max(1, int(last.max())))
    place = np.arange(max(1, int((last - first).max())))
    start, first, last = start[own], first[own], last[own]
    position = first[:, None] + place
    real = position < last[:, None]
    position = np.where(real, position, 0)
    following = np.where(real, start[:, None] + position + 1, 0)
    target = np.where(real, item[following], 0)
    read = np.where(column < np.maximum(last, 1)[:, None], start[:, None] + column, -1)
    history = np.where(read >= 0, item[read], 0)
    none = np.empty((*target.shape, 0), dtype=np.int64)
    weighs = real if weight is None else np.where(real, weight[following], 0)
    arrays = (history, position, target, none, weighs.astype(np.float32))
    examples = Examples(*(torch.from_numpy(a) for a in arrays))
    if time is None:
        return examples
    clicked, before = (np.where(real, time[at], 0) for at in (following, np.maximum(following - 1, 0)))
    gap = clicked - before if second == 1 else (clicked - before) / second
    return replace(examples, time=torch.from_numpy(clicked), gap=torch.from_numpy(gap))


def check_sampling_weights(weights: Ints, name: str) -> None:
    """Check that a negative can be sampled for every target.

    Raises:
        ValueError: if fewer than 2 items can be drawn.
    """
    if np.count_nonzero(weights) < 2:
        raise ValueError(
            f"{name}: negatives need at least 2 warm items that can be drawn, got {np.count_nonzero(weights)}; "
            "take more data, or negatives=0 with a loss over the whole catalogue"
        )


def leave_last_out(data: Dataset, clicks: int, *, least: int) -> Dataset:
    """Leave each user's last interactions out, for nested validation; users with fewer than ``least`` left drop out.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> len(data) - len(leave_last_out(data, 2, least=1))
        120
    """
    if not clicks:
        return data
    counts = np.diff(data.offsets)
    left = np.where(counts - clicks >= least, counts - clicks, 0)
    kept = np.arange(len(data)) - np.repeat(data.offsets[:-1], counts) < np.repeat(left, counts)
    return filter_interactions(data, kept)


def filter_interactions(data: Dataset, kept: NDArray[np.bool_]) -> Dataset:
    """Keep the interactions of an (n,) mask; those left out are counted in ``dropped``."""
    count = data.dropped.get(CUT, 0) + int((~kept).sum())
    dropped = {**data.dropped, CUT: count} if count else data.dropped
    return take(data, kept, dropped=dropped)


def on_catalog(data: Dataset, catalog: Catalog, warm: NDArray[np.bool_]) -> Dataset:
    """The same clicks under the codes of another catalogue; those on items that it does not have are left out.

    Args:
        data: the clicks; ids are compared as text.
        catalog: the items of a model.
        warm: (I,) which of them it has seen.

    Example:
        >>> from metarec.datasets import planted
        >>> data, part = planted(users=60, items=40), planted(users=60, items=30).catalog
        >>> there = on_catalog(data, part, np.ones(31, dtype=bool))
        >>> there.catalog.size, len(data) - len(there) == there.dropped[UNKNOWN] == int((data.item > 30).sum())
        (31, True)
    """
    code = {text: number for number, text in enumerate(catalog.items.texts, start=1)}
    texts = data.catalog.items.texts
    known = np.fromiter((code.get(text, 0) for text in texts), dtype=np.int64, count=len(texts))
    item = np.append(0, known)[data.item]
    kept, count = item > 0, int((item == 0).sum())
    dropped = {**data.dropped, UNKNOWN: count} if count else data.dropped
    counts = data.upstream_counts and data.upstream_counts.recoded(np.append(0, known), catalog.size)
    moved = {"catalog": catalog, "warm": warm, "dropped": dropped, "upstream_counts": counts}
    return take(data, kept, item=item[kept], **moved)


def begun_after(data: Dataset, time: float) -> Dataset:
    """The clicks of the users whose first click is later than a time; what all clicked until then is counted.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> late = begun_after(planted(users=60, items=40), PLANTED_SPLIT)
        >>> len(late.user_codes), bool(late.time.min() > PLANTED_SPLIT)
        (12, True)
    """
    late = filter_interactions(data, np.repeat(data.time[data.offsets[:-1]] > time, np.diff(data.offsets)))
    rows = data.time <= time
    counts = ItemCounts.of(data.user[rows], data.item[rows], data.catalog.size)
    return replace(late, upstream_counts=counts if rows.any() else data.upstream_counts)


def clicked_before(data: Dataset, users: Ints, withheld: int, last: int | None = None) -> tuple[Ints, Ints]:
    """Histories before the last interactions, of some users.

    Args:
        data: the clicks.
        users: (B,) codes of users that occur.
        withheld: last clicks of each that do not count.
        last: of those before, only so many.

    Returns:
        Rows of ``users`` and item codes, one pair for each click.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> row, item = clicked_before(data, np.array([3]), withheld=1, last=2)
        >>> row.tolist(), item.tolist() == data.item[data.user == 3][-3:-1].tolist()
        ([0, 0], True)
    """
    at = np.searchsorted(data.user_codes, users)
    stop = data.offsets[at + 1] - withheld
    start = data.offsets[at] if last is None else np.maximum(data.offsets[at], stop - last)
    count = np.maximum(stop - start, 0)
    index = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
    return np.repeat(np.arange(len(users)), count), data.item[index]
