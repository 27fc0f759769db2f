"""How often new items are seen: one number added to their scores, so that typical users find some in their lists.

Training has counted no clicks on them, and a generated vector says little of how popular an item will be. Compared with
the scores of items that many have clicked, theirs are too low or too high as a whole. What they are worth among each
other is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.nn.empty_user import Encode, likely_users
from metarec.scoring import Scores, UserState

PLACES = 10  # of a list
_USERS = 32  # users scored at once


@dataclass(frozen=True, eq=False)
class OffsetScores:
    """Scores of N users, with something added to those of some items, whoever the user is.

    Attributes:
        scores: as the model gives them.
        shift: (I,) what is added.
    """

    scores: Scores
    shift: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.scores[users], self.shift)

    def error(self) -> Tensor:
        """(N,) that of the scores, and of one sum."""
        step = torch.finfo(self.shift.dtype).eps
        return self.scores.error() + 4 * step * float(self.shift.abs().max())

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue."""
        return self.scores.approximate(start, stop).add_(self.shift[start:stop])

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        return self.scores.exact(codes) + self.shift[codes].double()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Those of the scores: what is added measures nothing."""
        return self.scores.moments()


def score_offset(
    encode: Encode,
    score: Callable[[UserState], Scores],
    known: Tensor,
    warm: NDArray[np.bool_],
    new: Tensor,
    share: float,
) -> float:
    """What to add to the scores of new items so that they get a share of the first places of typical users.

    Typical users are those who have clicked one of the items that the model itself expects most: nobody's clicks are
    looked at.

    Args:
        encode: support and query of users to their states.
        score: states to scores, as the model gives them.
        known: (I,) bool, items that can be ranked.
        warm: (I,) bool, the items seen upstream.
        new: (I,) bool, the new items that can be ranked.
        share: of the places in lists of ten, on average over the users.

    Returns:
        0 if there is no new item, or there are fewer than ten others.
    """
    old = known & ~new
    old[0] = False
    if not bool(new.any()) or int(old.sum()) < PLACES:
        return 0.0
    seen = torch.from_numpy(np.flatnonzero(warm)).to(known.device)

    def chances(state: UserState) -> Tensor:
        total = torch.zeros(len(known), dtype=torch.float64, device=known.device)
        for own in _pieces(score(state), len(known)):
            total[seen] += own[:, seen].double().softmax(1).sum(0)
        return total

    users = score(likely_users(encode, chances, warm)[0])
    count = max(1, round(share * PLACES * len(users)))
    margins = []
    for own in _pieces(users, len(new)):
        last = own.masked_fill(~old, -torch.inf).topk(PLACES).values
        best = own[:, new].topk(min(PLACES, int(new.sum()))).values
        taken = last.flip(1)[:, : best.shape[1]]  # the j-th best new item takes the j-th place from below
        margins.append((best - taken).flatten())
    each = torch.cat(margins).sort(descending=True).values
    count = min(count, len(each))
    return -float(each[count - 1 : count + 1].mean())


def _pieces(scores: Scores, items: int) -> list[Tensor]:
    return [scores[at : at + _USERS].approximate(0, items) for at in range(0, len(scores), _USERS)]
