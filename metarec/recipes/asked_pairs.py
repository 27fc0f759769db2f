"""Sums of the pairs that begin with the items that users clicked, by the other item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Ints
from metarec.recipes.click_log import Floats

S = TypeVar("S", bound=np.generic)
T = TypeVar("T", bound=np.generic)
Codes = NDArray[np.integer[Any]]

AT_ONCE = 1 << 18  # pairs that are summed at once: what fits a cache is several times as fast
CELLS = 1 << 20  # and the sums
FEW_RANGES = 64  # so many are cut out one by one, which is faster for one user


@dataclass(frozen=True, eq=False)
class Asked:
    """Pairs of the items that n users clicked last: one range of entries for each of R clicks.

    Attributes:
        low: (n, R) where each range begins.
        count: (n, R) how long it is.
        entries: the second items and the weights of ranges, from where they begin, their lengths and their users; no
            weights where all are 1.
        total: (n, R) sums of the weights of each range; None to add them up.
        clicks: (n, R) how often each item was clicked.
        factor: of all weights.
    """

    low: Ints
    count: Ints
    entries: Callable[[Ints, Ints, Ints], tuple[Codes, Floats | None]]
    total: Floats | None
    clicks: Floats
    factor: float = 1.0

    def of(self, first: int, stop: int, row: Ints, share: Callable[[Floats, Floats], Floats]) -> tuple[Codes, Floats]:
        """Second items, counted on from the ``row`` of their user, and what their pairs count, of some users."""
        count, clicks = self.count[first:stop], self.clicks[first:stop]
        each, slots = count.ravel(), np.repeat(np.arange(first, stop), count.shape[1])
        item, worth = self.entries(self.low[first:stop].ravel(), each, slots)
        if self.total is not None:
            total = self.total[first:stop]
        elif worth is None:
            total = count.astype(np.float64)
        else:
            slot = np.repeat(np.arange(len(each)), each)
            total = np.bincount(slot, worth, len(each)).reshape(count.shape).astype(np.float64)
        value = np.repeat(share(total, clicks).ravel() * self.factor, each)
        if worth is not None:
            value *= worth
        return (item + np.repeat(row[:-1], count.sum(1)) if len(count) > 1 else item), value


def ranges(low: Ints, count: Ints, first: NDArray[S], second: NDArray[T]) -> tuple[NDArray[S], NDArray[T]]:
    """Ranges of two columns, one after the other."""
    if len(low) <= FEW_RANGES:
        pieces = [slice(*ends) for ends in zip(low.tolist(), (low + count).tolist(), strict=True)]
        return np.concatenate([first[own] for own in pieces]), np.concatenate([second[own] for own in pieces])
    place = np.repeat(low - count.cumsum() + count, count)
    place += np.arange(len(place))
    return first.take(place), second.take(place)


def summed_by_user(
    asked: list[Asked], share: Callable[[Floats, Floats], Floats], users: int, items: int
) -> tuple[Ints, Ints, Floats]:
    """Sums of weighted pairs by user and second item, where there are any.

    Args:
        asked: the pairs.
        share: what the pairs of a click count, from the sum of their weights and the clicks of its item.
        users: n.
        items: I.

    Returns:
        Where each user's sums begin, (n + 1,), their items, ascending for each user, and the sums.
    """
    if not asked or not users:
        return np.zeros(users + 1, np.int64), np.empty(0, np.int64), np.empty(0)
    if users == 1:
        found, sums = _sums(asked, 0, 1, np.array([0, items]), share)
        return np.array([0, len(found)]), found, sums
    done = np.zeros(users + 1, np.int64)
    np.sum([a.count.sum(1) for a in asked], 0).cumsum(out=done[1:])
    starts: list[Ints] = []
    codes: list[Ints] = []
    sums_: list[Floats] = []
    first = found_before = 0
    while first < users:
        stop = int(np.searchsorted(done, done[first] + AT_ONCE, side="right")) - 1
        stop = max(first + 1, min(stop, users, first + CELLS // items))
        row = np.arange(stop - first + 1) * items  # where each user's cells begin
        found, sums = _sums(asked, first, stop, row, share)
        edge = np.searchsorted(found, row)
        starts.append(edge[:-1] + found_before)
        codes.append(found - np.repeat(row[:-1], np.diff(edge)))
        sums_.append(sums)
        first, found_before = stop, found_before + len(found)
    return np.append(np.concatenate(starts), found_before), np.concatenate(codes), np.concatenate(sums_)


def _sums(
    asked: list[Asked], first: int, stop: int, row: Ints, share: Callable[[Floats, Floats], Floats]
) -> tuple[Ints, Floats]:
    """Cells of some users' rows of items in which there is a sum, ascending, and the sums."""
    terms = [a.of(first, stop, row, share) for a in asked]
    cell, value = terms[0] if len(terms) == 1 else map(np.concatenate, zip(*terms, strict=True))
    cells = np.bincount(cell, value, row[-1])
    found = np.flatnonzero(cells != 0)  # of bool it is several times as fast
    return found, cells[found].astype(np.float64, copy=False)
