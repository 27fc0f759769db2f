"""The baselines that everything must beat: what most users clicked, ever, lately, or just now."""

from __future__ import annotations

import math

import numpy as np
import torch

from metarec.data.dataset import Dataset
from metarec.functional.segments import segment_sum
from metarec.types import Examples, Scored, Scorer


class Popularity:
    """Scores an item by its interactions upstream, the same for every user.

    Args:
        data: the upstream side of a split. Counting later interactions would be another information set:
            :class:`LivePopularity`.
        since: count only interactions at or after this time, in the units of the data; all of them by default.

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
        self.fitted_until = float(data.time.max())

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: every user gets the same scorer."""
        return self._score

    def _score(self, examples: Examples) -> Scored:
        shape, counts = examples.target.shape, self.counts.to(examples.target.device)
        return Scored(
            scores=counts.expand(*shape, -1),
            state=counts.new_zeros(*shape, 1),
            known=torch.arange(len(counts), device=counts.device) > 0,
            active=torch.ones(shape, dtype=torch.bool, device=counts.device),
        )


class LivePopularity:
    """Scores an item by ``log(1 + its clicks)`` in a window that ends strictly before the click that is asked for.

    The information is ``"live"``: the clicks of all users until then count, whatever side of a split they are on. It
    reads the time of each example; examples without one, of users served now, are asked for after the last click.

    Args:
        data: all clicks there are, before any split.
        window: length of the window, in the units of the data.

    Raises:
        ValueError: if there is no interaction or the window is not above 0.

    Example:
        >>> from metarec.data.dataset import Catalog, Vocabulary
        >>> data = Dataset(Vocabulary(["u"], "user"), Catalog(Vocabulary(["a", "b"])), user=np.array([1, 1, 1]),
        ...                item=np.array([2, 1, 2]), time=np.array([1, 5, 9]), warm=np.array([False, True, True]))
        >>> LivePopularity(data, window=5).counts(torch.tensor([9, 10, 11])).tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    """

    information = "live"

    def __init__(self, data: Dataset, *, window: float) -> None:
        if not len(data) or not window > 0:
            raise ValueError(
                f"live popularity: expected interactions and a window above 0, got {len(data)} and {window}"
            )
        order = np.argsort(data.time, kind="stable")
        self.time, self.item = torch.from_numpy(data.time[order]), torch.from_numpy(data.item[order])
        self.window, self.size = window, data.catalog.size

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: what is popular is the same for every user at one time."""
        return self._score

    def counts(self, time: torch.Tensor) -> torch.Tensor:
        """Clicks of each item from ``time - window`` on and before ``time``, (..., I) for times (...)."""
        flat = time.detach().cpu().reshape(-1)
        first, last = (torch.searchsorted(self.time, at.contiguous()) for at in (flat - self.window, flat))
        rows = torch.repeat_interleave(torch.arange(len(flat)), last - first)
        start = torch.repeat_interleave(
            first - torch.cat([first.new_zeros(1), (last - first).cumsum(0)[:-1]]), last - first
        )
        items = self.item[torch.arange(len(rows)) + start]
        out = torch.zeros(len(flat) * self.size).index_add_(0, rows * self.size + items, torch.ones(len(rows)))
        return out.reshape(*time.shape, self.size).to(time.device)

    def _score(self, examples: Examples) -> Scored:
        shape, device = examples.target.shape, examples.target.device
        now = torch.full(shape, float(self.time[-1]) + 1, dtype=torch.float64, device=device)
        counts = self.counts(now if examples.time is None else examples.time)
        return Scored(
            scores=counts.log1p(),
            state=counts.new_zeros(*shape, 1),
            known=torch.arange(self.size, device=device) > 0,
            active=torch.ones(shape, dtype=torch.bool, device=device),
        )
