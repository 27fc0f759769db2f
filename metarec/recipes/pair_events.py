"""Every single pair of clicks of the same users, from which any time of the past can be counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from metarec.data.dataset import Ints
from metarec.recipes.asked_pairs import Asked, ranges
from metarec.recipes.click_log import ClickLog, Floats


@dataclass(frozen=True)
class PairRule:
    """Which pairs count, and how much.

    Attributes:
        reach: how many clicks apart at most.
        both_ways: count a pair for the later click too.
        half_life: age at which a pair counts half; infinite where all count alike.
        forgotten: half-lives after which a pair is left out.
    """

    reach: int
    both_ways: bool = False
    half_life: float = math.inf
    forgotten: float = math.inf

    @property
    def fades(self) -> bool:
        """Whether older pairs count less."""
        return math.isfinite(self.half_life)

    def since(self, now: Floats) -> Floats:
        """The time from which on pairs count."""
        return now - self.forgotten * self.half_life if self.fades else np.full_like(now, -math.inf)

    def worth(self, at: Floats, now: float | Floats) -> Floats:
        """What a pair of a time counts at another one."""
        return np.exp2((at - now) / self.half_life) if self.fades else np.ones_like(at)

    def pairs(self, log: ClickLog, start: int, stop: int) -> tuple[Ints, Ints, Floats]:
        """First items, second items and times of the pairs whose later click is one of a range."""
        first, second, at = log.pairs(start, max(start, stop), self.reach)
        if self.both_ways:
            first, second, at = np.append(first, second), np.append(second, first), np.append(at, at)
        return first, second, at


@dataclass(frozen=True, eq=False)
class PairEvents:
    """Every single pair of a log, by its first item, then by time, so that any window of time is a range of each.

    Attributes:
        key: (p,) the first item and how many clicks were before the pair.
        item: (p,) the second items.
        at: (p,) when.
        clicked: (n,) each click's item and how many clicks were before it, ascending.
        time: (n,) of all clicks, ascending.
    """

    key: Ints
    item: Ints
    at: Floats
    clicked: Ints
    time: Floats

    @classmethod
    def of(cls, log: ClickLog, rule: PairRule) -> Self:
        """All pairs of a log."""
        first, second, at = rule.pairs(log, 0, len(log))
        step = len(log) + 1
        key = first * step + np.searchsorted(log.time, at)
        order = np.argsort(key, kind="stable")
        clicked = np.sort(log.item * step + np.searchsorted(log.time, log.time))
        return cls(key[order], second[order], at[order], clicked, log.time)

    def clicks(self, items: Ints, now: Floats) -> Floats:
        """How often items were clicked before times of the same shape."""
        first = items * (len(self.time) + 1)
        last = np.searchsorted(self.clicked, first + np.searchsorted(self.time, now))
        return (last - np.searchsorted(self.clicked, first)).astype(np.float64)

    def asked(self, items: Ints, now: Floats, rule: PairRule) -> Asked:
        """The pairs before times (n,) of the items (n, R); none where the time is NaN or the item 0."""
        step = len(self.time) + 1
        low, high = (
            np.searchsorted(self.key, items * step + np.searchsorted(self.time, edge)[:, None])
            for edge in (rule.since(now), now)
        )
        count = np.where((items > 0) & ~np.isnan(now)[:, None], high - low, 0)

        def entries(low: Ints, count: Ints, user: Ints) -> tuple[Ints, Floats | None]:
            item, at = ranges(low, count, self.item, self.at)
            return item, rule.worth(at, np.repeat(now[user], count)) if rule.fades else None

        return Asked(low, count, entries, None, self.clicks(items, np.broadcast_to(now[:, None], items.shape)))
