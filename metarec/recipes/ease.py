"""EASE: a linear item-to-item model with a closed form, which scores a new user from the history alone.

Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. There are no user parameters, so a cold
user needs no training.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Dataset, Ints
from metarec.functional.histories import seen_items
from metarec.types import Examples, Scored, Scorer

PAIRS = 1 << 24  # counted at once


class EASE:
    """``scores = x B`` with ``B = I - P / diag(P)``, ``P = (X^T X + penalty I)^-1``, over items seen upstream.

    Args:
        data: the upstream side of a split.
        penalty: of the ridge regression; more for smaller data.
        items: so many at most, the most clicked; of the others it knows nothing.
        device: where the matrix, items by items, is inverted and kept.

    Raises:
        ValueError: if the penalty is not above 0, or ``items`` below 1.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.evaluation import evaluate
        >>> up, down = split_by_time(planted(users=60, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> evaluate(EASE(up), down, k=(5,)).metrics["recall@5"].mean > 5 / 40
        True
    """

    information = "upstream"

    def __init__(
        self, data: Dataset, *, penalty: float = 200.0, items: int = 10_000, device: torch.device | str = "cpu"
    ) -> None:
        if not penalty > 0:
            raise ValueError(f"EASE: penalty must be above 0, got {penalty}")
        codes = most_clicked(data, items)
        gram = cooccurrences(data, codes, device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), device=device)))
        self.weight = (-inverse / inverse.diagonal()).fill_diagonal_(0)
        self.codes, self.size = torch.from_numpy(codes).to(device), data.catalog.size
        self.fitted_until = float(data.time.max())

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: the history is all it reads."""
        return lambda examples: from_history(examples, self.weight, self.codes, self.size)


def most_clicked(data: Dataset, items: int) -> Ints:
    """Codes of the warm items that were clicked most, so many at most, in ascending order.

    Raises:
        ValueError: if none is wanted.
    """
    if items < 1:
        raise ValueError(f"items must be at least 1, got {items}")
    warm = np.flatnonzero(data.warm)
    count = np.bincount(data.item, minlength=data.catalog.size)[warm]
    codes: Ints = np.sort(warm[np.argsort(-count, kind="stable")[:items]])
    return codes


def cooccurrences(data: Dataset, codes: Ints, device: torch.device | str = "cpu") -> Tensor:
    """(n, n) how many users clicked both of n items; the diagonal has how many clicked one."""
    place = np.full(data.catalog.size, -1)
    place[codes] = np.arange(len(codes))
    kept = place[data.item] >= 0
    both = np.unique(data.user[kept].astype(np.int64) * len(codes) + place[data.item[kept]])
    user, item = np.divmod(both, len(codes))
    count = np.unique(user, return_counts=True)[1]
    first, done = (np.append(0, np.cumsum(column)) for column in (count, count**2))  # items and pairs before each user
    out = torch.zeros(len(codes) ** 2, device=device)
    start = 0
    while start < len(count):
        stop = max(start + 1, int(np.searchsorted(done, done[start] + PAIRS, side="right")) - 1)
        own = _pairs(item[first[start] : first[stop]], count[start:stop], len(codes))
        key = torch.from_numpy(own).to(device)
        out.index_add_(0, key, torch.ones(len(key), device=device))
        start = stop
    return out.view(len(codes), len(codes))


def _pairs(item: Ints, count: Ints, size: int) -> Ints:
    """``a * size + b`` of all pairs of items of one user, of users with so many items each, one after the other."""
    each = np.repeat(count, count)  # partners of every item
    first = np.repeat(np.cumsum(count) - count, count)  # where those of its user begin
    place = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each) + np.repeat(first, each)
    pairs: Ints = np.repeat(item, each) * size + item[place]
    return pairs


def from_history(examples: Examples, weight: Tensor, codes: Tensor, size: int) -> Scored:
    """What the items of each history say together: the sum of their rows of ``weight``, (n, n), about n items."""
    device = examples.history.device
    weight, codes = weight.to(device), codes.to(device)
    seen = seen_items(examples, size)[..., codes]
    scores = weight.new_zeros(*examples.target.shape, size)
    scores[..., codes] = seen.to(weight.dtype) @ weight
    known = torch.zeros(size, dtype=torch.bool, device=device).index_fill(0, codes, 1)
    return Scored(scores, weight.new_zeros(*examples.target.shape, 1), known, seen.any(-1))
