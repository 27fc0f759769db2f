"""The baselines that everything must beat: what most users clicked, ever, lately, or just now."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.functional.segments import segment_sum
from metarec.types import Examples, Scored, Scorer

SMOOTH = 0.5
"""Clicks that every item has on top of its own. The log ranks as the counts do, and adds up with other scores."""


def after(time: Tensor) -> Tensor:
    """A time, float64, strictly after another: one unit, or more where nanoseconds leave no room for one."""
    return torch.nextafter(time + 1, time.new_tensor(math.inf))


class Popularity:
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

    information = "upstream"

    def __init__(self, data: Dataset, *, since: float | None = None) -> None:
        recent = data.time >= (-math.inf if since is None else since)
        if not recent.any():
            raise ValueError(f"popularity: {data.name} has no interaction at or after since={since}; choose it earlier")
        item = torch.from_numpy(data.item[recent])
        self.counts = segment_sum(torch.ones(len(item)), item, data.catalog.size)
        self.known = torch.from_numpy(data.warm)
        self.fitted_until = float(data.time.max())

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: every user gets the same scorer."""
        return self._score

    def _score(self, examples: Examples) -> Scored:
        shape, counts = examples.target.shape, self.counts.to(examples.target.device)
        return Scored(
            scores=(counts + SMOOTH).log().expand(*shape, -1),
            state=counts.new_zeros(*shape, 1),
            known=self.known.to(counts.device),
            active=torch.ones(shape, dtype=torch.bool, device=counts.device),
        )


class LivePopularity:
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

    def __init__(self, data: Dataset, *, window: float, half_life: float | None = None) -> None:
        if not len(data) or not window > 0 or not (half_life is None or half_life > 0):
            raise ValueError(
                "live popularity: expected interactions, and window and half-life above 0, got "
                f"{len(data)} interactions, {window} and {half_life}"
            )
        order = np.argsort(data.time, kind="stable")
        self.time, self.item = torch.from_numpy(data.time[order]).double(), torch.from_numpy(data.item[order])
        self.window, self.half_life, self.size = window, half_life, data.catalog.size

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: what is popular is the same for every user at one time."""
        return self._score

    def counts(self, time: Tensor) -> Tensor:
        """Clicks of each item from ``time - window`` on and before ``time``, (..., I) for times (...)."""
        now = time.detach().cpu().double().reshape(-1)  # float32 would put unix seconds on a grid of two minutes
        first, last = (torch.searchsorted(self.time, at.contiguous()) for at in (now - self.window, now))
        count = last - first
        row = torch.repeat_interleave(torch.arange(len(now)), count)
        event = torch.arange(len(row)) + torch.repeat_interleave(first - count.cumsum(0) + count, count)
        worth = torch.ones(len(row))
        if self.half_life is not None:
            worth = torch.exp2(-(now[row] - self.time[event]) / self.half_life).float()
        out = torch.zeros(len(now) * self.size).index_add_(0, row * self.size + self.item[event], worth)
        return out.reshape(*time.shape, self.size).to(time.device)

    def _score(self, examples: Examples) -> Scored:
        shape, device = examples.target.shape, examples.target.device
        now = after(self.time[-1]).to(device).expand(shape)
        counts = self.counts(now if examples.time is None else examples.time)
        return Scored(
            scores=(counts + SMOOTH).log(),
            state=counts.new_zeros(*shape, 1),
            known=torch.arange(self.size, device=device) > 0,
            active=torch.ones(shape, dtype=torch.bool, device=device),
        )
