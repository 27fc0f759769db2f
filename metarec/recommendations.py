"""The lists that users get."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Ints, Vocabulary

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, repr=False)
class Recommendation:
    """One entry of a ranked list.

    Attributes:
        id: the item's external id, text or a whole number as the data have it.
        score: comparable within one user's list, not between users.
    """

    id: Any
    score: float

    def __repr__(self) -> str:
        return f"{self.id} ({self.score:.3f})"


@dataclass(frozen=True, repr=False)
class Reason:
    """What a user clicked, and by how much it moved a recommended item up.

    Attributes:
        id: the clicked item's external id.
        effect: the recommended item's score with the click minus without it, each in standard deviations of the user's
            scores of all items; below 0 where the click moved it down.
    """

    id: Any
    effect: float

    def __repr__(self) -> str:
        return f"{self.id} ({self.effect:+.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class Recommendations:
    """Ranked lists of B users: codes and scores; ids and :class:`Recommendation` on demand.

    A user with fewer than k items left has a shorter list, see ``counts``. K is the length of the longest list.

    Attributes:
        codes: (B, K) int64 item codes, best first; 0, which is no item, after the end of a list.
        scores: (B, K) float32; minus infinity after the end of a list.
        items: the vocabulary of the codes.
        titles: one per item of the vocabulary, if the catalogue has them.

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
    titles: Sequence[str] | None = None

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

    def to_frame(self, users: Sequence[Any] | None = None) -> pl.DataFrame:
        """All lists as one polars frame: a row for each user and item, best first.

        Args:
            users: what to call the users, one each; by default they are numbered from 0.

        Returns:
            Columns ``user``, ``rank`` (from 1), ``item`` (the external id), ``title`` (if the catalogue has titles) and
            ``score``.

        Raises:
            ValueError: if there is not one name per user.

        Example:
            >>> lists = Recommendations(np.array([[2, 1]]), np.array([[0.5, 0.25]], np.float32), Vocabulary([7, 12]))
            >>> lists.to_frame(["ann"]).rows()
            [('ann', 1, 12, 0.5), ('ann', 2, 7, 0.25)]
        """
        import polars as pl

        if users is not None and len(users) != len(self):
            raise ValueError(f"to_frame: expected a name for each of {len(self)} users, got {len(users)}")
        user, place = np.nonzero(self.codes > 0)
        codes = self.codes[user, place].tolist()
        columns = {
            "user": user if users is None else [users[row] for row in user.tolist()],
            "rank": place + 1,
            "item": pl.Series(self.items.decode(codes), dtype=self._id_type),
            "title": None
            if self.titles is None
            else pl.Series([self.titles[code - 1] for code in codes], dtype=pl.String),
            "score": self.scores[user, place],
        }
        return pl.DataFrame({name: column for name, column in columns.items() if column is not None})

    @property
    def _id_type(self) -> type[pl.DataType] | None:
        """The type of the ids in a frame; None for numbers that are too large for the usual one."""
        import polars as pl

        if not self.items.whole_numbers:
            return pl.String
        return pl.Int64 if min(self.items.ids) >= -(2**63) and max(self.items.ids) < 2**63 else None

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
