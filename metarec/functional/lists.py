"""Metrics of ranked lists beyond accuracy: mean values of the items, intra-list diversity, miscalibration.

A list is a row of item codes, best first; 0, which is no item, after its end. Values are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHA = 0.01  # of the users' own distribution in that of their lists, so that no category has none
AT_ONCE = 64  # lists whose features are held at once: what a cache holds


def mean_at(codes: Tensor, values: Tensor, k: Sequence[int]) -> Tensor:
    """The mean of a value over the first k items of each list: novelty, popularity.

    Args:
        codes: (n, K) int64.
        values: (I,) of each item.
        k: lengths of the list.

    Returns:
        (n, len(k)) NaN where a list is empty.

    Example:
        >>> mean_at(torch.tensor([[1, 2, 3], [3, 0, 0]]), torch.tensor([0.0, 1.0, 2.0, 6.0]), [2, 3]).tolist()
        [[1.5, 3.0], [6.0, 6.0]]
    """
    shown = codes > 0
    return _first(values.double()[codes] * shown, k) / _first(shown, k)


def _first(values: Tensor, k: Sequence[int]) -> Tensor:
    """(n, len(k), ...) sums over the first k columns of (n, K, ...), or all that there are."""
    if not values.shape[1]:
        return values.new_zeros(len(values), len(k), *values.shape[2:])
    return values.cumsum(1)[:, [min(length, values.shape[1]) - 1 for length in k]]


def self_information(users: Tensor, everybody: int) -> Tensor:
    """(I,) float64, how new an item is: minus the base 2 logarithm of the share of the users who clicked it.

    Items that nobody clicked count as clicked by one user. Source: mean inverse user frequency, S. Vargas, P. Castells,
    "Rank and relevance in novelty and diversity metrics for recommender systems", RecSys 2011.

    Args:
        users: (I,) how many users clicked each.
        everybody: how many users there are.

    Example:
        >>> self_information(torch.tensor([8, 4, 1, 0]), 8).tolist()
        [-0.0, 1.0, 3.0, 3.0]
    """
    return -torch.log2(users.clamp(min=1).double() / max(1, everybody))


def diversity_at(codes: Tensor, features: Sequence[tuple[Tensor, Tensor]], k: Sequence[int]) -> Tensor:
    """Intra-list diversity: the mean cosine distance of the pairs among the first k items of each list.

    Where there are several modalities, the mean is over pairs and modalities; an item takes part in those that it has.
    A list without a pair has 0. Source: C.-N. Ziegler et al., "Improving recommendation lists through topic
    diversification", WWW 2005.

    Args:
        codes: (n, K) int64.
        features: per modality, features (I, F) and whether an item has them (I,).
        k: lengths of the list.

    Returns:
        (n, len(k)) from 0, all alike, to 2.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
        >>> diversity_at(torch.tensor([[1, 2, 3]]), [(features, torch.arange(4) > 0)], [2, 3]).tolist()
        [[1.0, 0.6666666666666666]]
    """
    parts = [_diversity(some, features, k) for some in codes.split(AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0, len(k), dtype=torch.float64)


def _diversity(codes: Tensor, features: Sequence[tuple[Tensor, Tensor]], k: Sequence[int]) -> Tensor:
    distance, pairs = (torch.zeros(len(codes), len(k), dtype=torch.float64) for _ in range(2))
    for table, present in features:
        has = present[codes] & (codes > 0)
        unit = F.normalize(table[codes].double(), dim=-1) * has.unsqueeze(-1)
        cosines = unit @ unit.mT
        others = 2 * cosines.tril(-1).sum(2)  # of each item with those before it, both ways round
        count = _first(has, k)
        ordered = count * (count - 1)
        distance += ordered - _first(others, k)
        pairs += ordered
    return distance / pairs.clamp(min=1)


def shares(row: Tensor, item: Tensor, rows: int, groups: Tensor) -> Tensor:
    """How the items of each row are spread over groups; an item of several groups counts in each by its part.

    Args:
        row: (m,) int64.
        item: (m,) int64 item codes.
        rows: n.
        groups: (I, W) int64, the groups of each item, from 1; 0 where there is none.

    Returns:
        (n, G + 1), column 0 is empty; rows add up to 1, or are NaN where no item has a group.

    Example:
        >>> groups = torch.tensor([[0, 0], [1, 0], [1, 2]])
        >>> shares(torch.tensor([0, 0]), torch.tensor([1, 2]), 1, groups).tolist()
        [[0.0, 0.75, 0.25]]
    """
    own = groups[item]
    weight = (own > 0).double() / (own > 0).sum(1, keepdim=True).clamp(min=1)
    width = int(groups.max()) + 1
    sums = torch.zeros(rows * width, dtype=torch.float64)
    sums.index_add_(0, (row.unsqueeze(1) * width + own).flatten(), weight.flatten())
    sums = sums.view(rows, width)
    return sums / sums.sum(1, keepdim=True)


def miscalibration(history: Tensor, listed: Tensor) -> Tensor:
    """How far lists are from the tastes of their users: the Kullback-Leibler divergence, 0 where calibrated.

    Source: H. Steck, "Calibrated recommendations", RecSys 2018, with its 1% of the history's own shares in the list's.

    Args:
        history: (n, G) shares of groups among what each user clicked.
        listed: (n, G) the same of the list.

    Returns:
        (n,) NaN where either has no item with a group.

    Example:
        >>> even, one = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
        >>> miscalibration(even, even).item(), round(miscalibration(even, one).item(), 2)
        (0.0, 1.96)
    """
    mixed = (1 - ALPHA) * listed + ALPHA * history
    return torch.where(history == 0, 0.0, history * (history / mixed).log()).sum(1) + 0.0 * listed.sum(1)
