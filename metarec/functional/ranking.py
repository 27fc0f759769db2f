"""Ranks of targets and ranking metrics: top-k, recall, MRR, NDCG.

One relevant candidate per example: recall is then the hit rate, and the ideal DCG is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns, largest first, equal ones by ascending column.

    So the first j of k are the best j, whatever k is, on every device; ``torch.topk`` takes any of the equals. -0.0
    equals 0.0. A program that exports this holds a stable sort of the row.

    Args:
        scores: (..., C) without NaN.
        k: at least 0 and at most C.

    Returns:
        values: (..., k).
        columns: (..., k) int64.

    Raises:
        ValueError: if ``k`` is not between 0 and C.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0]), 3)
        (tensor([3., 3., 1.]), tensor([1, 3, 0]))
    """
    width = scores.shape[-1]
    if not 0 <= k <= width:
        raise ValueError(f"top_k: k must be between 0 and the {width} columns, got {k}")
    if torch.onnx.is_in_onnx_export():
        first = scores.topk(k)  # ONNX itself says that of equals the lower column comes first
        return first.values, first.indices
    if torch.compiler.is_compiling() or k == 0:
        values, columns = (scores + 0.0).sort(dim=-1, descending=True, stable=True)
        return values[..., :k], columns[..., :k]
    rows = scores.reshape(-1, width)
    found = rows.topk(k)
    chosen = found.indices.sort().values
    last = found.values[:, -1:]
    equal = rows == last
    cut = (equal.sum(1) > (found.values == last).sum(1)).nonzero().squeeze(1)  # rows that have more equals than places
    if len(cut):
        above, equal = rows[cut] > last[cut], equal[cut]
        taken = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        chosen[cut] = taken.nonzero()[:, 1].view(-1, k)
    values, order = (rows.gather(1, chosen) + 0.0).sort(
        descending=True, stable=True
    )  # no -0.0: sorts may tell them apart
    shape = (*scores.shape[:-1], k)
    return values.view(shape), chosen.gather(1, order).view(shape)


def ranks(scores: Tensor, target: Tensor, *, allowed: Tensor | None = None) -> Tensor:
    """Rank of each target among its candidates; 1 is best.

    Ties count at the mean of the ranks they share, so a method that gives every candidate the same score stands in
    the middle and gains nothing by it. The target's own candidate always takes part, whatever ``allowed`` says of it.

    Args:
        scores: (..., C), higher is better.
        target: (...) int64, the column of the relevant candidate.
        allowed: bool, broadcastable to (..., C): the candidates that take part. All do by default; leave out the
            padding column and, if wished, what the user has already seen.

    Returns:
        (...) float32 ranks from 1 to the number of candidates, in steps of one half.

    Raises:
        ValueError: if shapes disagree, a target is not a column, or a score that takes part is not finite.

    Example:
        >>> scores = torch.tensor([[0.0, 0.9, 0.4, 0.4], [0.0, 0.1, 0.1, 0.1]])
        >>> ranks(scores, torch.tensor([2, 1])).tolist()
        [2.5, 2.0]
        >>> ranks(scores, torch.tensor([2, 1]), allowed=torch.tensor([False, False, True, True])).tolist()
        [1.5, 2.0]
    """
    if scores.shape[:-1] != target.shape:
        raise ValueError(
            f"ranks: expected scores (...,C) and target (...), got {tuple(scores.shape)} and {tuple(target.shape)}"
        )
    candidates = scores.shape[-1]
    outside = (target < 0) | (target >= candidates)
    if outside.any():
        where = _first(outside)
        raise ValueError(f"ranks: target {int(target[where])} at {where} is outside the columns 0..{candidates - 1}")
    column = target.unsqueeze(-1)
    own = torch.arange(candidates, device=scores.device) == column
    part = torch.ones_like(own) if allowed is None else allowed | own
    broken = part & ~torch.isfinite(scores)
    if broken.any():
        where = _first(broken)
        raise ValueError(
            f"ranks: score {float(scores[where])} at {where} is not finite; comparisons with a NaN are all false, so "
            "its target would rank first. Look for a diverged step (a lower learning rate) or a division by zero"
        )
    own_score = scores.gather(-1, column)
    better = (part & (scores > own_score)).sum(-1)
    tied = (part & ~own & (scores == own_score)).sum(-1)
    return 1 + better.float() + tied.float() / 2


def recall_at(ranks: Tensor, k: int) -> Tensor:
    """1 where the target is within the first k, else 0.

    A rank shared by ties counts as it stands: 10.5 is not within the first 10.

    Args:
        ranks: (...) as :func:`ranks` returns them.
        k: the length of the list, at least 1.

    Returns:
        (...) one value per example.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> recall_at(torch.tensor([1.0, 10.0, 10.5]), 10).tolist()
        [1.0, 1.0, 0.0]
    """
    return _within(ranks, k).to(ranks.dtype)


def mrr_at(ranks: Tensor, k: int) -> Tensor:
    """1 / rank where the target is within the first k, else 0.

    Args:
        ranks: (...) as :func:`ranks` returns them.
        k: the length of the list, at least 1.

    Returns:
        (...) one value per example.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> mrr_at(torch.tensor([1.0, 2.5, 11.0]), 10).tolist()
        [1.0, 0.4000000059604645, 0.0]
    """
    return torch.where(_within(ranks, k), 1 / ranks, 0.0)


def ndcg_at(ranks: Tensor, k: int) -> Tensor:
    """1 / log2(1 + rank) where the target is within the first k, else 0.

    Args:
        ranks: (...) as :func:`ranks` returns them.
        k: the length of the list, at least 1.

    Returns:
        (...) one value per example.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> ndcg_at(torch.tensor([1.0, 3.0, 11.0]), 10).tolist()
        [1.0, 0.5, 0.0]
    """
    return torch.where(_within(ranks, k), 1 / torch.log2(1 + ranks), 0.0)


def _within(ranks: Tensor, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return ranks <= k


def _first(mask: Tensor) -> tuple[int, ...]:
    """Index of the first True."""
    return tuple(int(i) for i in mask.nonzero()[0])
