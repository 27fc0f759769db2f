"""Bringing the scores of several learners onto one scale and adding them, without a parameter per candidate."""

from __future__ import annotations

import torch
from torch import Tensor


def standardise(scores: Tensor, known: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the known candidates; unknown candidates get 0.

    Args:
        scores: (..., C).
        known: (C,) or (..., C) bool.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([True, True, False]))
        tensor([[-1.,  1.,  0.]])
    """
    count = known.sum(-1, keepdim=True).clamp(min=1)
    centred = (scores - (scores * known).sum(-1, keepdim=True) / count) * known
    deviation = ((centred**2).sum(-1, keepdim=True) / count).clamp(min=1e-12).sqrt()
    return centred / deviation


def fuse(scores: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    """Weighted mean of the modalities' scores over the modalities that know each candidate.

    Args:
        scores: (..., M, C), on one scale (see :func:`standardise`).
        weights: (..., M), not negative.
        known: (M, C) bool.

    Returns:
        (..., C). A candidate that no weighted modality knows gets the lowest score of its row.

    Example:
        >>> s = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]])
        >>> fuse(s, torch.tensor([[0.5, 0.5]]), torch.tensor([[True, True, False], [True, False, False]]))
        tensor([[2., 2., 2.]])
    """
    share = weights.unsqueeze(-1) * known
    total = share.sum(-2)
    mean = (share * scores).sum(-2) / torch.where(total > 0, total, torch.ones_like(total))
    lowest = mean.masked_fill(total <= 0, torch.inf).amin(-1, keepdim=True)
    return torch.where(total > 0, mean, torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest)))


def standardise_features(features: Tensor, present: Tensor, fitted: int | None = None) -> Tensor:
    """Features with column means 0 and mean squared length 1 over the items that have them; the others stay 0.

    One scale for all columns: the directions that vary most keep their lead. Length 1 whatever the number of columns,
    so that one learning rate of a projection serves wide and narrow features.

    Args:
        features: (I, F).
        present: (I,) bool.
        fitted: rows that mean and length are taken from, the first so many; later rows are measured by them. All by
            default.

    Example:
        >>> standardise_features(torch.tensor([[5.0], [1.0], [3.0]]), torch.tensor([False, True, True]))
        tensor([[ 0.],
                [-1.],
                [ 1.]])
    """
    mask = present.unsqueeze(-1)
    own = slice(fitted)
    count = mask[own].sum().clamp(min=1)
    centred = (features - (features[own] * mask[own]).sum(0) / count) * mask
    scale = ((centred[own] ** 2).sum() / count).clamp(min=1e-12).sqrt()
    return centred / scale
