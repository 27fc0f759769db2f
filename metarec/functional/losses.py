"""Losses of one next-item example from the scores of its target and of the items it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def bpr(positive: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking, ``-log(1e-10 + sigmoid(positive - negative))``, mean over the negatives.

    Source: Rendle et al., UAI 2009, with the 1e-10 of RecBole's ``BPRLoss``, which the released MML code uses.

    Args:
        positive: (...) scores of the targets.
        negatives: (..., N) scores of the negatives.

    Returns:
        (...) loss per example.

    Example:
        >>> bpr(torch.tensor([1.0]), torch.tensor([[1.0]]))
        tensor([0.6931])
    """
    return -torch.log(1e-10 + torch.sigmoid(positive.unsqueeze(-1) - negatives)).mean(-1)


def sampled_softmax(positive: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of the target among itself and its negatives.

    Args:
        positive: (...) scores of the targets.
        negatives: (..., N) scores of the negatives.

    Returns:
        (...) loss per example.

    Example:
        >>> sampled_softmax(torch.tensor([0.0]), torch.zeros(1, 3))  # log(1 + 3)
        tensor([1.3863])
    """
    return torch.cat([positive.unsqueeze(-1), negatives], -1).logsumexp(-1) - positive


def softmax(scores: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """Cross-entropy of the target among the allowed candidates and itself.

    Args:
        scores: (..., C).
        target: (...) candidate index of the target; a target that is not allowed still counts itself.
        allowed: (C,) bool; leave out items that training never sees, or their vectors are only pushed away.

    Returns:
        (...) loss per example.

    Example:
        >>> softmax(torch.zeros(1, 5), torch.tensor([1]), torch.tensor([False, True, True, False, False]))
        tensor([0.6931])
    """
    own = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return softmax_among(own, scores.masked_fill(~allowed, -torch.inf), allowed[target])


def softmax_among(positive: Tensor, candidates: Tensor, included: Tensor) -> Tensor:
    """Cross-entropy of the target among the candidates, where the target may be one of them or not.

    Args:
        positive: (...) scores of the targets.
        candidates: (..., C) scores of the candidates.
        included: (...) bool, whether the target is among the candidates.

    Returns:
        (...) loss per example.

    Example:
        >>> softmax_among(torch.zeros(2), torch.zeros(2, 3), torch.tensor([True, False]))  # log 3, log 4
        tensor([1.0986, 1.3863])
    """
    others = candidates.logsumexp(-1)
    return torch.where(included, others, torch.logaddexp(others, positive)) - positive


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Mean of (..., S) losses over each user's real examples, (...); 0 for a user without any.

    Example:
        >>> weighted_mean(torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([3.])
    """
    return (loss * weight).sum(-1) / weight.sum(-1).clamp(min=1)
