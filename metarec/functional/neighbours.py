"""Nearest items by their features."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.functional.ranking import top_k

_ROWS = 1 << 10  # in double precision at once: what a cache holds
_LARGE = 2.0**40  # products of larger numbers may be more than float32 holds, those of their inverses less


def nearest_items(features: Tensor, allowed: Tensor, k: int, chunk: int = 4096, first: int = 0) -> Tensor:
    """The ``k`` allowed items with the largest dot product with each item, itself left out.

    Items with the same features are equally near, and equally near ones come in the order of their codes, so that the
    first of k neighbours are the fewer neighbours. An item whose features are all 0, or not finite, is near to none.

    Args:
        features: (I, F), of any unit.
        allowed: (I,) bool, items that may be a neighbour.
        k: how many neighbours.
        chunk: items scored at once, which bounds the memory at chunk x I scores.
        first: the item from which on neighbours are looked for.

    Returns:
        (I - first, k) int64 item codes, nearest first; 0 where there are fewer than k allowed items.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> nearest_items(x, torch.tensor([False, True, True, True]), k=2)[1:].tolist()
        [[3, 2], [3, 1], [2, 1]]
    """
    if k < 1:
        raise ValueError(f"nearest_items: k must be at least 1, got {k}")
    size = features.abs().amax(1) if features.shape[1] else features.new_zeros(len(features))
    usable = size.isfinite() & (size > 0)
    columns = (allowed & usable).nonzero().squeeze(-1)
    out = torch.zeros(len(features) - first, k, dtype=torch.int64, device=features.device)
    take = min(k, len(columns))
    if take == 0:
        return out
    largest = float(size[usable].max())
    if not 1 / _LARGE < largest < _LARGE:
        features = (features.double() / largest).to(features.dtype)
    others = features[columns]
    equal = first_equal(others)
    for start in range(first, len(features), chunk):
        rows = torch.arange(start, min(start + chunk, len(features)), device=features.device)
        similar = (features[rows] @ others.T)[:, equal]
        similar = similar.masked_fill(rows.unsqueeze(-1) == columns, -torch.inf)
        value, index = top_k(similar.masked_fill(~usable[rows].unsqueeze(-1), -torch.inf), take)
        out[rows - first, :take] = torch.where(value.isfinite(), columns[index], 0)
    return out


def first_equal(rows: Tensor) -> Tensor:
    """For each row, (n,) int64, the first row that is equal to it: itself, mostly.

    A matrix product gives equal rows results that may differ in the last bit, by where they stand in it.

    Args:
        rows: (n, F).

    Example:
        >>> first_equal(torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 2.0]])).tolist()
        [0, 1, 0]
    """
    weight = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).cos()
    mark = torch.cat([(part.double() * weight).sum(1) for part in rows.split(_ROWS)])
    group = mark.unique(return_inverse=True)[1]
    out = torch.arange(len(rows), device=rows.device)
    left = out.clone()
    while len(left):  # once, but for different rows of the same mark
        first = left.new_full((len(rows),), len(rows)).scatter_reduce(0, group[left], left, "amin")[group[left]]
        found = (rows[left] == rows[first]).all(1) | (first == left)
        out[left[found]] = first[found]
        left = left[~found]
    return out
