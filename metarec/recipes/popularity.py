"""The baseline that everything must beat: what most users clicked."""

from __future__ import annotations

import math

import torch

from metarec.data.dataset import Dataset
from metarec.functional.segments import segment_sum
from metarec.types import Examples, Scored, Scorer


class Popularity:
    """Scores an item by its interactions upstream, the same for every user.

    Args:
        data: the upstream side of a split. Counting later interactions would be another information set: a live
            count of the last days can double a model that stops at the split.
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

    def __init__(self, data: Dataset, *, since: float | None = None) -> None:
        recent = data.time >= (-math.inf if since is None else since)
        if not recent.any():
            raise ValueError(f"popularity: {data.name} has no interaction at or after since={since}; choose it earlier")
        item = torch.from_numpy(data.item[recent])
        self.counts = segment_sum(torch.ones(len(item)), item, data.catalog.size)

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
