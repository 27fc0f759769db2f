"""Popularity baselines: most clicked ever, recently, or in a window before each moment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.functional.segments import segment_sum
from metarec.model import Saved, register
from metarec.recipes.click_log import ClickLog, Floats
from metarec.recipes.counting import Counts, numbers, setting
from metarec.recipes.table_scores import ScoreTable, TableScores
from metarec.scoring import Scores, UserState
from metarec.types import Examples

SMOOTH = 0.5
"""Clicks that every item has on top of its own. The log ranks as the counts do, and adds up with other scores."""


@register
class Popularity(Counts):
    """Scores an item by its interactions upstream (their log, see ``SMOOTH``), the same for every user.

    It knows the items that anyone clicked upstream, in the time that counts or before.

    Args:
        data: the upstream side of a split. Counting later interactions would be another information set:
            :class:`LivePopularity`.
        since: count only interactions at or after this time, in the units of the data; all of them by default. The
            last 90 days are ``data.time.max() - data.days(90)``.

    Raises:
        ValueError: if no interaction is left to count.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> import numpy as np
        >>> ids = Vocabulary(["a", "b", "c"])
        >>> data = Dataset(Vocabulary(["u"], "user"), Catalog(ids), user=np.array([1, 1, 1]), item=np.array([2, 2, 1]),
        ...                time=np.array([1, 2, 3]), warm=np.array([False, True, True, False]))
        >>> Popularity(data).counts.tolist()
        [0.0, 1.0, 2.0, 0.0]
        >>> Popularity(data, since=3).counts.tolist()
        [0.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, data: Dataset, *, since: float | None = None) -> None:
        recent = data.time >= (-math.inf if since is None else since)
        if not recent.any():
            raise ValueError(f"popularity: {data.name} has no interaction at or after since={since}; choose it earlier")
        self.attach(data)
        item = torch.from_numpy(data.item[recent])
        self._begin(segment_sum(torch.ones(len(item)), item, data.catalog.size), torch.from_numpy(data.warm))
        self.fitted_until = float(data.time.max())

    def _begin(self, counts: Tensor, known: Tensor) -> None:
        self.counts, self.known = counts, known
        self._table = ScoreTable((counts.double() + SMOOTH).log().unsqueeze(0), known)

    def item_mask(self) -> Tensor:
        """(I,) bool, the items clicked upstream."""
        return self.known

    def read(self, query: Examples) -> dict[str, Tensor]:
        """Nothing; everybody is active."""
        return _everybody(query)

    def scores(self, state: UserState) -> Scores:
        """The log of the counts, the same for everybody."""
        active = state.tensors["active"]
        return TableScores(self._table.to(active.device), torch.zeros_like(active, dtype=torch.int64))

    def _grow(self, items: int) -> None:
        more = items - len(self.known)
        self._begin(*(torch.cat([own, own.new_zeros(more)]) for own in (self.counts, self.known)))

    def _told(self) -> Saved:
        """The counts."""
        return Saved({}, {"counts": self.counts})

    def _take(self, saved: Saved) -> None:
        counts = numbers(saved.tensors, "counts", torch.float32, len(self.warm))
        if (counts < 0).any() or counts[0] != 0:
            raise ValueError("counts must not be below 0, and 0 for the padding")
        self._begin(torch.from_numpy(counts), torch.from_numpy(self.warm))


def _everybody(query: Examples) -> dict[str, Tensor]:
    return {"active": torch.ones(query.target.numel(), dtype=torch.bool, device=query.target.device)}


@dataclass(frozen=True, eq=False)
class WindowCounts:
    """Clicks of each item in the window before the end of a log: a value, which gives another one for more clicks.

    Attributes:
        log: the clicks.
        window: length of the window.
        half_life: age at which a click counts half; infinite where all count alike.
        counts: (I,) at the end of the log.
        left: so many clicks of the log are before the window.
    """

    log: ClickLog
    window: float
    half_life: float
    counts: Floats
    left: int

    @classmethod
    def of(cls, log: ClickLog, window: float, half_life: float, items: int) -> Self:
        """The counts of a log, of a catalogue with so many rows."""
        left = int(np.searchsorted(log.time, log.now - window))
        out = cls(log, window, half_life, np.zeros(items), left)
        return replace(out, counts=out._worth(left, len(log), log.now))

    def _worth(self, start: int, stop: int, now: float) -> Floats:
        """(I,) what a range of clicks counts at a time."""
        worth = np.exp2((self.log.time[start:stop] - now) / self.half_life) if math.isfinite(self.half_life) else None
        counts = np.bincount(self.log.item[start:stop], worth, len(self.counts))
        return counts.astype(np.float64)

    def followed_by(self, clicks: Dataset) -> Self:
        """The counts with later clicks too.

        Raises:
            ValueError: if a click is earlier than the last one; names it.
        """
        out = replace(self, log=self.log.followed_by(clicks))
        now = out.log.now
        left = int(np.searchsorted(out.log.time, now - self.window))
        gone, come = out._worth(self.left, left, now), out._worth(len(self.log), len(out.log), now)
        faded = self.counts * math.exp2((self.log.now - now) / self.half_life)
        return replace(out, counts=faded - gone + come, left=left)

    def padded(self, items: int) -> Self:
        """The same for a larger catalogue."""
        return replace(self, counts=np.pad(self.counts, (0, items - len(self.counts))))

    @cached_property
    def table(self) -> ScoreTable:
        """The scores at the end of the log."""
        return _table(self.counts[None])

    def at(self, time: Floats) -> Floats:
        """(T, I) counts in the windows before times (T,)."""
        edges = (np.searchsorted(self.log.time, edge) for edge in (time - self.window, time))
        ranges = zip(*edges, time.tolist(), strict=True)
        return np.stack([self._worth(first, last, now) for first, last, now in ranges])


def _table(counts: Floats) -> ScoreTable:
    known = torch.arange(counts.shape[1]) > 0
    return ScoreTable(torch.from_numpy(np.log(counts + SMOOTH)), known)


@register
class LivePopularity(Counts):
    """Scores an item by its clicks (their log, see ``SMOOTH``) in a window that ends strictly before what is asked for.

    The information is ``"live"``: the clicks of all users until then count, whatever side of a split they are on. It
    reads the time of each example; examples without one, of users served now, are asked for after the last click.

    Args:
        data: all clicks there are, before any split.
        window: length of the window, in the units of the data, e.g. ``data.days(7)``.
        half_life: age at which a click counts half, in the same units; None to count all of the window alike.

    Raises:
        ValueError: if there is no interaction, or the window or the half-life is not above 0.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> data = Dataset(Vocabulary(["u"], "user"), Catalog(Vocabulary(["a", "b"])), user=np.array([1, 1, 1]),
        ...                item=np.array([2, 1, 2]), time=np.array([1, 5, 9]), warm=np.array([False, True, True]))
        >>> LivePopularity(data, window=5).counts(torch.tensor([9, 10, 11])).tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    """

    information = "live"
    _counted: WindowCounts

    def __init__(self, data: Dataset, *, window: float, half_life: float | None = None) -> None:
        if not len(data) or not window > 0 or not (half_life is None or half_life > 0):
            raise ValueError(
                "live popularity: expected interactions, and window and half-life above 0, got "
                f"{len(data)} interactions, {window} and {half_life}"
            )
        self.attach(data)
        self._begin(ClickLog.of(data), window, half_life, data.catalog.size)

    def _begin(self, log: ClickLog, window: float, half_life: float | None, items: int) -> None:
        self.window, self.half_life = window, half_life
        self._counted = WindowCounts.of(log, window, math.inf if half_life is None else half_life, items)
        self.observed = torch.zeros((), dtype=torch.int64)

    def item_mask(self) -> Tensor:
        """(I,) bool, all items."""
        return torch.arange(len(self._counted.counts)) > 0

    def counts(self, time: Tensor) -> Tensor:
        """Clicks of each item from ``time - window`` on and before ``time``, (..., I) float32 for times (...)."""
        asked = time.detach().cpu().double()  # float32 would put unix seconds on a grid of two minutes
        found = self._counted.at(asked.reshape(-1).numpy())
        return torch.from_numpy(found).float().reshape(*time.shape, -1).to(time.device)

    def read(self, query: Examples) -> dict[str, Tensor]:
        """Nothing; everybody is active."""
        return _everybody(query)

    def scores(self, state: UserState) -> Scores:
        """The log of the counts, the same for everybody who asks at one time."""
        counted, time = self._counted, state.tensors["time"]
        table, row = counted.table, torch.zeros(len(time), dtype=torch.int64, device=time.device)
        if not bool(time.isnan().all()):
            moments, place = np.unique(time.cpu().numpy(), return_inverse=True)  # NaN, if there is one, is last, once
            past = moments[~np.isnan(moments)]
            table = _table(np.concatenate([counted.at(past), counted.counts[None]]))
            row = torch.from_numpy(place).to(time.device)
        if self.fitted is not None:
            table = replace(table, known=self.measured(table.known))
        return TableScores(table.to(time.device), row)

    def _grow(self, items: int) -> None:
        self._counted = self._counted.padded(items)

    def _told(self) -> Saved:
        """All clicks, without their users."""
        settings = {"window": self.window, "half_life": self.half_life}
        return Saved(settings, self._counted.log.tensors(users=False))

    def _take(self, saved: Saved) -> None:
        window, half_life = (setting(saved.settings, name, float) for name in ("window", "half_life"))
        if not (window or 0) > 0 or not (half_life is None or half_life > 0):
            raise ValueError(f"window and half_life must be above 0, got {window} and {half_life}")
        log = ClickLog.of_tensors(saved.tensors, len(self.warm), users=False)
        self._begin(log, window, half_life, len(self.warm))
