"""How often each item was clicked, and by how many users: what novelty and popularity are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metarec.data.dataset import Dataset

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ItemCounts:
    """Clicks and users of every item.

    Attributes:
        clicks: (I,) int64, clicks on each item code.
        users: (I,) int64, different users who clicked it.
        everybody: how many users there are.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> counts = ItemCounts.of(data)
        >>> int(counts.clicks.sum()) == len(data), counts.everybody, bool((counts.users <= counts.clicks).all())
        (True, 60, True)
    """

    clicks: Ints
    users: Ints
    everybody: int

    @classmethod
    def of(cls, data: Dataset) -> Self:
        """The counts of all interactions of some data."""
        size = data.catalog.size
        pairs = np.sort(data.user * size + data.item)
        first = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
        users = np.bincount(pairs[first] % size, minlength=size)
        return cls(np.bincount(data.item, minlength=size), users, len(data.user_codes))

    def recoded(self, code: Ints, size: int) -> Self:
        """The same under other codes.

        Args:
            code: (I,) the new code of each item; 0 for those that are left out.
            size: how many codes there are, with padding.
        """
        kept = code > 0
        moved = [np.zeros(size, dtype=np.int64) for _ in range(2)]
        for new, old in zip(moved, (self.clicks, self.users), strict=True):
            new[code[kept]] = old[kept]
        return type(self)(*moved, self.everybody)

    def popularity_groups(self) -> Ints:
        """(I,) 0 for the head, the most popular items, which have 20% of the clicks; 2 for the tail, the least popular
        with 20% and all without clicks; 1 for those between.

        Source: H. Abdollahpouri et al., "User-centered evaluation of popularity bias in recommender systems", UMAP '21.

        Example:
            >>> counts = np.array([0, 10, 5, 30, 5, 0])
            >>> ItemCounts(counts, counts, 30).popularity_groups().tolist()
            [2, 1, 2, 0, 2, 2]
        """
        order = np.argsort(-self.clicks, kind="stable")
        before = np.cumsum(self.clicks[order]) - self.clicks[order]
        share = before / max(1, self.clicks.sum())
        groups = np.empty(len(order), dtype=np.int64)
        groups[order] = np.where(self.clicks[order] == 0, 2, (share >= 0.2).astype(np.int64) + (share >= 0.8))
        return groups
