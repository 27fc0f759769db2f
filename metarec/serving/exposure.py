"""How often new items are seen: one number added to their scores, so that typical users find some in their lists.

Training has counted no clicks on them, and a generated vector says little of how popular an item will be. Compared with
the scores of items that many have clicked, theirs are too low or too high as a whole. What they are worth among each
other is left as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.serving.adapting import likely_users
from metarec.serving.clicks import SupportMaker
from metarec.serving.snapshot import Snapshot

PLACES = 10  # of a list
_USERS = 32  # users scored at once


def shift_of(snapshot: Snapshot, support: SupportMaker, new: Tensor, share: float) -> float:
    """What to add to the scores of new items so that they get a share of the first places of typical users.

    Typical users are those who have clicked one of the items that the model itself expects most: nobody's clicks are
    looked at.

    Args:
        snapshot: the model, its scores as they are.
        support: makes the examples.
        new: (I,) bool, the new items that can be ranked.
        share: of the places in lists of ten, on average over the users.

    Returns:
        0 if there is no new item, or there are fewer than ten others.
    """
    old = snapshot.known & ~new
    old[0] = False
    if not bool(new.any()) or int(old.sum()) < PLACES:
        return 0.0
    standing, _ = likely_users(snapshot, support)
    count = max(1, round(share * PLACES * len(standing.state)))
    margins = []
    with torch.no_grad():
        scores = snapshot.scores(standing)
        for first in range(0, len(scores), _USERS):
            own = scores[first : first + _USERS].approximate(0, len(new))
            last = own.masked_fill(~old, -torch.inf).topk(PLACES).values
            best = own[:, new].topk(min(PLACES, int(new.sum()))).values
            taken = last.flip(1)[:, : best.shape[1]]  # the j-th best new item takes the j-th place from below
            margins.append((best - taken).flatten())
    each = torch.cat(margins).sort(descending=True).values
    count = min(count, len(each))
    return -float(each[count - 1 : count + 1].mean())
