"""Losses of one next-item example from the scores of its target and of the items it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 26}  # products that are held at once


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
    return softmax_beside(positive, candidates.logsumexp(-1), included)


def softmax_beside(positive: Tensor, others: Tensor, included: Tensor) -> Tensor:
    """Cross-entropy of the target beside candidates of whom the log-sum-exp is known.

    Args:
        positive: (...) scores of the targets.
        others: (...) log-sum-exp of the candidates' scores.
        included: (...) bool, whether the target is among the candidates.

    Returns:
        (...) loss per example.

    Example:
        >>> softmax_beside(torch.zeros(1), torch.zeros(1), torch.tensor([False]))  # log 2
        tensor([0.6931])
    """
    return torch.where(included, others, torch.logaddexp(others, positive)) - positive


class _LogSumExp(torch.autograd.Function):
    """``(state @ vectors.T).logsumexp(-1)``, a block of states at a time, forward and backward."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, vectors: Tensor) -> Tensor:
        ctx.rows = max(1, AT_ONCE.get(state.device.type, 1 << 26) // max(1, len(vectors)))
        found = [(part @ vectors.T).logsumexp(-1) for part in state.split(ctx.rows)]
        out = torch.cat(found) if found else state.new_empty(0)
        ctx.save_for_backward(state, vectors, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        state, vectors, out = ctx.saved_tensors
        of_state, of_vectors = torch.empty_like(state), torch.zeros_like(vectors)
        blocks = zip(*(tensor.split(ctx.rows) for tensor in (state, out, grads[0], of_state)), strict=True)
        for part, total, grad, into in blocks:
            share = (part @ vectors.T).sub_(total.unsqueeze(-1)).exp_().mul_(grad.unsqueeze(-1))
            torch.mm(share, vectors, out=into)
            of_vectors.addmm_(share.T, part)
        return of_state, of_vectors


def logsumexp_of_products(state: Tensor, vectors: Tensor) -> Tensor:
    """Log-sum-exp of the products of states and vectors, which are never all held at once; one derivative.

    Args:
        state: (n, D).
        vectors: (C, D).

    Returns:
        (n,).

    Example:
        >>> logsumexp_of_products(torch.zeros(1, 2), torch.ones(3, 2))  # log 3
        tensor([1.0986])
    """
    out: Tensor = _LogSumExp.apply(state, vectors)  # type: ignore[no-untyped-call]
    return out


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Mean of (..., S) losses over each user's real examples, (...); 0 for a user without any.

    Example:
        >>> weighted_mean(torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([3.])
    """
    return (loss * weight).sum(-1) / weight.sum(-1).clamp(min=1)
