"""Incremental item-to-item counts: running sums for the present, single pairs for any moment of the past."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Dataset, Ints
from metarec.files import expect_tensor
from metarec.recipes.asked_pairs import Asked, Codes, ranges
from metarec.recipes.click_log import ClickLog, Floats, check_codes
from metarec.recipes.counting import numbers
from metarec.recipes.pair_events import PairEvents, PairRule
from metarec.recipes.pair_sums import CODE, PairPart, PairSums

LONGEST = 256  # half-lives after which weights are measured from another time, as float64 ends at 1,024


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Immutable item-to-item counts, which give new ones for later clicks.

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

    def followed_by(self, clicks: Dataset) -> Self:
        """The counts with later clicks too; themselves if they do not go on.

        Raises:
            ValueError: if a click is earlier than the last one; names it.
        """
        if self.log is None:
            return self
        log = self.log.followed_by(clicks)
        rule, old, now = self.rule, len(self.log), log.now
        left = int(np.searchsorted(log.time, rule.since(np.array(now))))
        if left - self.began > len(log) - left or (now - self.zero) / rule.half_life > LONGEST:
            return type(self).of(log, rule, len(self.clicks))
        sums = self.sums
        for start, stop, sign in ((max(old, left), len(log), 1.0), (self.left, min(left, old), -1.0)):
            first, second, at = rule.pairs(log, start, stop)
            sums = sums.plus(first, second, sign * rule.worth(at, self.zero))
        more = np.bincount(log.item[old:], minlength=len(self.clicks))
        return replace(self, sums=sums, clicks=self.clicks + more, log=log, left=left)

    def closed(self) -> Self:
        """The same without the log: it does not go on."""
        return replace(self, log=None, zero=0.0)

    def rows(self) -> dict[str, Tensor]:
        """Sums that do not go on, as compressed sparse rows, for a file."""
        key, weight = self.sums.parts[0].key, self.sums.parts[0].weight
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
        return PairEvents.of(cast(ClickLog, self.log), self.rule)

    @cached_property
    def _factor(self) -> float:
        """Of all weights, after the last click."""
        return 1.0 if self.log is None else float(self.rule.worth(np.array(self.zero), self.log.now))

    def now(self, items: Ints, asked: Ints | int = 1) -> list[Asked]:
        """The pairs of the items (n, R) after the last click, of users who ask for that (n, 1) bool, or all."""
        factor, clicks = self._factor, self.clicks[items]
        total = self.sums.total[items] * factor
        bounds = [(part, *part.bounds(items)) for part in self.sums.parts]
        return [Asked(low, count * asked, _entries(part), total, clicks, factor) for part, low, count in bounds]

    def asked(self, items: Ints, time: Floats | None) -> list[Asked]:
        """The pairs of the items (n, R) that users clicked last, before times (n,); after the last click where NaN."""
        if time is None or np.isnan(time).all():
            return self.now(items)
        now = self.now(items, np.isnan(time).astype(np.int64)[:, None])
        return [*now, self.events.asked(items, time, self.rule)]

    def clicks_of(self, items: Ints, start: Ints, time: Floats | None) -> Floats:
        """How often items (m,) were clicked at times (n,), those of the first from ``start[0]`` on, and so on."""
        clicks = self.clicks[items]
        if time is None or np.isnan(time).all():
            return clicks
        now = np.repeat(time, np.diff(start))
        return np.where(np.isnan(now), clicks, self.events.clicks(items, now))


def _entries(part: PairPart) -> Callable[[Ints, Ints, Ints], tuple[Codes, Floats]]:
    return lambda low, count, user: ranges(low, count, part.item, part.weight)
