"""Nearest items of items that are added to many, by one pass over the features of these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metarec.functional.neighbours import FEW, ROUNDING, nearest_items
from metarec.functional.remembering import Remembered

_found: Remembered[Tensor] = Remembered()  # by the features before items were added: several learners have the same
_lengths: Remembered[float] = Remembered()


def nearest_of_added(before: Sequence[Tensor], features: Sequence[Tensor], allowed: Tensor, k: int) -> Tensor:
    """The nearest of items that were added, as ``nearest_items(torch.cat(features, 1), allowed, k, first=I)`` has them.

    Args:
        before: (I, F) by modality; not changed in place later.
        features: (I + m, F), the same and those of m more items.
        allowed: (I + m,) bool, items that may be a neighbour; none of the last m.
        k: how many neighbours.

    Returns:
        (m, k) int64 item codes.

    Example:
        >>> text = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> nearest_of_added([text[:3]], [text], torch.tensor([False, True, True, False]), 2).tolist()
        [[2, 1]]
    """
    told = k, allowed.cpu().numpy().tobytes()
    return _found.of([*before, *features], told, lambda: _nearest(before, features, allowed, k))


def _nearest(before: Sequence[Tensor], features: Sequence[Tensor], allowed: Tensor, k: int) -> Tensor:
    first = len(before[0])
    added = [table[first:] for table in features]
    longest = sum(map(_longest, before, features)) ** 0.5
    if not 0 < len(added[0]) <= FEW < int(allowed.sum()) - k:
        return nearest_items(torch.cat(list(features), 1), allowed, k, first=first)
    similar = added[0] @ before[0].T
    for rows, table in zip(added[1:], before[1:], strict=True):
        similar += rows @ table.T
    similar.masked_fill_(~allowed[:first], -torch.inf)
    rows = torch.cat(added, 1)
    room = ROUNDING * longest * torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    near = similar >= similar.topk(k).values[:, -1:] - room  # as near as the k-th, but for rounding
    codes = near.any(0).nonzero().squeeze(-1)
    some = torch.cat([table[codes] for table in before], 1)
    if not bool((some.isfinite().all(1) & some.any(1)).all()):  # what is near to none may hide others
        return nearest_items(torch.cat(list(features), 1), allowed, k, first=first)
    few = torch.cat([torch.zeros_like(rows[:1]), some, rows])
    candidate = torch.arange(len(few), device=few.device) <= len(codes)
    place = nearest_items(few, candidate, k, first=1 + len(codes))
    return torch.cat([codes.new_zeros(1), codes])[place]


def _longest(before: Tensor, table: Tensor) -> float:
    """The square of the largest length of a row of a table, of which the rows of another were measured before."""
    known = _lengths.of([before], None, lambda: _square(before))
    return _lengths.of([table], None, lambda: max(known, _square(table[len(before) :])))


def _square(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dim=1).max()) ** 2 if rows.numel() else 0.0
