"""Nearest items by their features."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_items(features: Tensor, allowed: Tensor, k: int, chunk: int = 4096, first: int = 0) -> Tensor:
    """The ``k`` allowed items with the largest dot product with each item, itself left out.

    Args:
        features: (I, F).
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
    columns = allowed.nonzero().squeeze(-1)
    out = torch.zeros(len(features) - first, k, dtype=torch.int64, device=features.device)
    take = min(k, len(columns))
    if take == 0:
        return out
    for start in range(first, len(features), chunk):
        rows = torch.arange(start, min(start + chunk, len(features)), device=features.device)
        similar = features[rows] @ features[columns].T
        similar = similar.masked_fill(rows.unsqueeze(-1) == columns, -torch.inf)
        value, index = similar.topk(take, dim=-1)
        out[rows - first, :take] = torch.where(value.isfinite(), columns[index], torch.zeros_like(index))
    return out
