"""Counts of what was clicked after what: sums for the present, which move on, and single pairs for the past."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Ints
from metarec.files import expect_tensor
from metarec.recipes.click_log import ClickLog, Floats, check_codes
from metarec.recipes.counting import numbers
from metarec.recipes.pair_sums import CODE, PairSums

AT_ONCE = 1 << 23  # pairs that are summed at once
CELLS = 1 << 24  # and the sums
LONGEST = 256  # half-lives after which weights are measured from another time, as float64 ends at 1,024


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
class Asked:
    """Pairs of the items that n users clicked last: one range of entries for each of R clicks.

    Attributes:
        low, count: (n, R) where each range begins and how long it is.
        entry: the second items and weights of some entries, of users (n,).
        total: (n, R) sums of the weights of each range; None to add them up.
        clicks: (n, R) how often each item was clicked.
    """

    low: Ints
    count: Ints
    entry: Callable[[Ints, Ints], tuple[Ints, Floats]]
    total: Floats | None
    clicks: Floats

    def of(self, first: int, stop: int, share: Callable[[Floats, Floats], Floats]) -> tuple[Ints, Ints, Floats]:
        """Users, counted from the first, second items and weighted sums' terms of some users."""
        count, low = self.count[first:stop].ravel(), self.low[first:stop].ravel()
        slot = np.repeat(np.arange(len(count)), count)
        user = slot // self.count.shape[1]
        item, worth = self.entry(np.arange(len(slot)) + np.repeat(low - count.cumsum() + count, count), user + first)
        if self.total is None:
            total = np.bincount(slot, worth, len(count)).reshape(stop - first, -1)
        else:
            total = self.total[first:stop]
        return user, item, worth * share(total, self.clicks[first:stop]).ravel()[slot]


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
        entry = lambda event, user: (self.item[event], rule.worth(self.at[event], now[user]))  # noqa: E731
        return Asked(low, count, entry, None, self.clicks(items, np.broadcast_to(now[:, None], items.shape)))


@dataclass(frozen=True, eq=False)
class PairCounts:
    """What a model of pairs has counted: a value, which gives another one for more clicks.

    Attributes:
        rule: which pairs count.
        sums: of all pairs that count after the last click, their weights measured at ``zero``.
        clicks: (I,) of each item.
        log: what is counted, where it may go on or be asked about for the past.
        zero: see ``sums``.
        left: so many clicks of the log are too old to count.
        began: as many as that were when the sums were last made from the log.
    """

    rule: PairRule
    sums: PairSums
    clicks: Floats
    log: ClickLog | None = None
    zero: float = 0.0
    left: int = 0
    began: int = 0

    @classmethod
    def of(cls, log: ClickLog, rule: PairRule, items: int) -> Self:
        """The counts of a log, of a catalogue with so many rows."""
        now = log.now
        left = int(np.searchsorted(log.time, rule.since(np.array(now))))
        first, second, at = rule.pairs(log, left, len(log))
        sums = PairSums.none(items).plus(first, second, rule.worth(at, now))
        clicks = np.bincount(log.item, minlength=items).astype(np.float64)
        return cls(rule, sums, clicks, log, now, left, left)

    def followed_by(self, log: ClickLog) -> Self:
        """The counts of a log that this one's is the beginning of."""
        assert self.log is not None
        rule, old, now = self.rule, len(self.log), log.now
        left = int(np.searchsorted(log.time, rule.since(np.array(now))))
        if left - self.began > len(log) - left or (now - self.zero) / rule.half_life > LONGEST:
            return type(self).of(log, rule, len(self.clicks))
        sums = self.sums
        for start, stop, sign in ((max(old, left), len(log), 1.0), (self.left, min(left, old), -1.0)):
            first, second, at = rule.pairs(log, start, stop)
            sums = sums.plus(first, second, sign * rule.worth(at, self.zero))
        clicks = self.clicks + np.bincount(log.item[old:], minlength=len(self.clicks))
        return replace(self, sums=sums, clicks=clicks, log=log, left=left)

    def closed(self) -> Self:
        """The same without the log: it does not go on."""
        return replace(self, log=None, zero=0.0)

    def rows(self) -> dict[str, Tensor]:
        """Sums that do not go on, as compressed sparse rows, for a file."""
        (key, weight), *_ = self.sums.parts
        start = np.searchsorted(key, np.arange(len(self.clicks) + 1) * CODE)
        return {
            "start": torch.from_numpy(start),
            "item": torch.from_numpy((key % CODE).astype(np.int32)),
            "count": torch.from_numpy(weight.astype(np.int32)),
            "clicks": torch.from_numpy(self.clicks.astype(np.int64)),
        }

    @classmethod
    def of_rows(cls, tensors: Mapping[str, Tensor], rule: PairRule, items: int) -> Self:
        """The sums that :meth:`rows` put away, of a catalogue with so many rows.

        Raises:
            KeyError, ValueError: if these are not such tensors.
        """
        start = numbers(tensors, "start", torch.int64, items + 1)
        item = expect_tensor(tensors, "item", torch.int32, 1).numpy().astype(np.int64)
        check_codes("item", item, items)
        if start[0] != 0 or start[1] != 0 or start[-1] != len(item) or (np.diff(start) < 0).any():
            raise ValueError(f"start does not divide {len(item)} pairs among {items - 1} items")
        key = np.repeat(np.arange(items), np.diff(start)) * CODE + item
        count = numbers(tensors, "count", torch.int32, len(item))
        clicks = numbers(tensors, "clicks", torch.int64, items)
        if not len(key) or (np.diff(key) <= 0).any() or (count < 1).any() or (clicks < 0).any():
            raise ValueError("expected each pair once, in ascending order, with counts above 0, and clicks not below 0")
        sums = PairSums.none(items).plus(key // CODE, item, count.astype(np.float64))
        return cls(rule, sums, clicks.astype(np.float64))

    def padded(self, items: int) -> Self:
        """The same for a larger catalogue."""
        more = np.pad(self.clicks, (0, items - len(self.clicks)))
        return replace(self, sums=self.sums.padded(items), clicks=more)

    @cached_property
    def events(self) -> PairEvents:
        """Every single pair, made when somebody asks about the past."""
        assert self.log is not None
        return PairEvents.of(self.log, self.rule)

    def now(self, items: Ints, asked: Ints) -> list[Asked]:
        """The pairs of the items (n, R) after the last click, of users who ask for that (n,) bool."""
        factor = 1.0 if self.log is None else float(self.rule.worth(np.array(self.zero), self.log.now))
        total, clicks = self.sums.total[items] * factor, self.clicks[items]

        def entry(key: Ints, weight: Floats) -> Callable[[Ints, Ints], tuple[Ints, Floats]]:
            return lambda event, user: (key[event] % CODE, weight[event] * factor)

        return [
            Asked(low, count * asked[:, None], entry(*part), total, clicks)
            for part, (low, count) in zip(self.sums.parts, self.sums.bounds(items), strict=True)
        ]

    def asked(self, items: Ints, time: Floats | None) -> list[Asked]:
        """The pairs of the items (n, R) that users clicked last, before times (n,); after the last click where NaN."""
        if time is None or np.isnan(time).all():
            return self.now(items, np.ones(len(items), dtype=np.int64))
        return [*self.now(items, np.isnan(time).astype(np.int64)), self.events.asked(items, time, self.rule)]

    def clicks_of(self, items: Ints, users: Ints, time: Floats | None) -> Floats:
        """How often items (m,) were clicked at the times of users (m,), which are places in ``time``."""
        clicks = self.clicks[items]
        if time is None or np.isnan(time).all():
            return clicks
        now = time[users]
        return np.where(np.isnan(now), clicks, self.events.clicks(items, now))


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
    done = np.append(0, np.sum([a.count.sum(1) for a in asked], 0).cumsum())
    parts, first = [], 0
    while first < users:
        stop = int(np.searchsorted(done, done[first] + AT_ONCE, side="right")) - 1
        stop = max(first + 1, min(stop, users, first + CELLS // items))
        terms = [a.of(first, stop, share) for a in asked]
        user, item, value = (np.concatenate(column) for column in zip(*terms, strict=True))
        cells = np.bincount(user * items + item, value, (stop - first) * items)
        found = np.flatnonzero(cells)
        parts.append((found + first * items, cells[found]))
        first = stop
    cell, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return np.searchsorted(cell, np.arange(users + 1) * items), cell % items, value
