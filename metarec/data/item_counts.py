"""How often each item was clicked, and by how many users: what novelty and popularity are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ItemCounts:
    """Clicks and users of every item.

    Attributes:
        clicks: (I,) int64, clicks on each item code.
        users: (I,) int64, different users who clicked it.
        everybody: how many users there are.

    Example:
        >>> counts = ItemCounts.of(np.array([1, 1, 2]), np.array([3, 3, 1]), size=4)
        >>> counts.clicks.tolist(), counts.users.tolist(), counts.everybody
        ([0, 1, 0, 2], [0, 1, 0, 1], 2)
    """

    clicks: Ints
    users: Ints
    everybody: int

    @classmethod
    def of(cls, user: Ints, item: Ints, size: int) -> Self:
        """Count interactions.

        Args:
            user: (n,) user codes.
            item: (n,) item codes.
            size: how many item codes there are, with padding.
        """
        pairs = np.unique(user * size + item)
        users = np.bincount(pairs % size, minlength=size)
        return cls(np.bincount(item, minlength=size), users, len(np.unique(pairs // size)))

    def recoded(self, code: Ints, size: int) -> Self:
        """The same under other codes.

        Args:
            code: (I,) the new code of each item; 0 for those that are left out.
            size: how many codes there are, with padding.
        """
        kept = code > 0
        clicks, users = np.zeros((2, size), dtype=np.int64)
        clicks[code[kept]], users[code[kept]] = self.clicks[kept], self.users[kept]
        return type(self)(clicks, users, self.everybody)

    def popularity_groups(self) -> Ints:
        """(I,) head, middle and tail of the items: 0, 1 and 2.

        The head is the most popular items, which have 20% of the clicks; the tail the least popular with 20%, and all
        without clicks.

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
