"""The lists that users get."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Ints, Vocabulary


@dataclass(frozen=True, repr=False)
class Recommendation:
    """One entry of a ranked list.

    Attributes:
        id: the item's external id.
        score: comparable within one user's list, not between users.
    """

    id: str
    score: float

    def __repr__(self) -> str:
        return f"{self.id} ({self.score:.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class Recommendations:
    """Ranked lists of B users: codes and scores; ids and :class:`Recommendation` on demand.

    A user with fewer than k items left has a shorter list, see ``counts``. K is the length of the longest list.

    Attributes:
        codes: (B, K) int64 item codes, best first; 0, which is no item, after the end of a list.
        scores: (B, K) float32; minus infinity after the end of a list.
        items: the vocabulary of the codes.

    Example:
        >>> scores = np.array([[0.5, 0.25], [0.5, -np.inf]], dtype=np.float32)
        >>> lists = Recommendations(np.array([[2, 1], [1, 0]]), scores, Vocabulary("ab"))
        >>> lists.ids.tolist(), lists[0], lists[1], lists.counts.tolist()
        ([['b', 'a'], ['a', None]], [b (0.500), a (0.250)], [a (0.500)], [2, 1])
        >>> lists
        Recommendations(2 users, 1 to 2 items each)
    """

    codes: Ints
    scores: NDArray[np.float32]
    items: Vocabulary

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        least, most = self.counts.min(initial=self.codes.shape[1]), self.codes.shape[1]
        return f"Recommendations({len(self):,} users, {most if least == most else f'{least} to {most}'} items each)"

    @cached_property
    def counts(self) -> Ints:
        """(B,) how long each list is."""
        out: Ints = (self.codes > 0).sum(1)
        return out

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """(B, K) external ids; None after the end of a list."""
        names = np.full(self.codes.shape, None, dtype=object)
        real = self.codes > 0
        names[real] = self.items.decode(self.codes[real].tolist())
        return names

    def __getitem__(self, user: int) -> list[Recommendation]:
        """The list of one user."""
        length = self.counts[user]
        names = self.items.decode(self.codes[user, :length].tolist())
        return [Recommendation(i, s) for i, s in zip(names, self.scores[user, :length].tolist(), strict=True)]

    def __iter__(self) -> Iterator[list[Recommendation]]:
        return (self[user] for user in range(len(self)))

    def say_if_short(self, k: int) -> Self:
        """The same, with a warning to who asked the caller for longer lists.

        Args:
            k: the length that was asked for.
        """
        short, one = self.counts < k, len(self) == 1
        if short.any():
            least, count = int(self.counts.min()), int(short.sum())
            who = "this user" if one else f"{count:,} of {len(self):,} users"
            left = f"only {least}" if one else f"as few as {least}"
            warnings.warn(
                f"recommend: {left} items are left for {who}, where k={k}: shorter lists, see Recommendations.counts",
                stacklevel=3,
            )
        return self
