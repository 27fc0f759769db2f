"""Losses of one next-item example from the scores of its target and of the items it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1e-6  # sum of weights that is divided by
AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 29}  # products that are held at once
LEAST_ROWS = 64  # of them: a product of fewer spends its time on reading the vectors
FEW = 8  # vectors whose products with a state are faster element by element than as a matrix product


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


def _exponentials(products: Tensor, state: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiples of the exponentials of (n, C) products, their sums, and the log-sum-exps.

    Args:
        products: of states and vectors; overwritten.
        state: (n, D).
        vectors: (C, D).
    """
    if not len(vectors):
        return products, products.new_ones(len(products)), products.new_full((len(products),), -torch.inf)
    if products.is_cuda:  # pragma: no cover
        chances = products.softmax(-1)
        top, at = chances.max(-1)
        return chances, torch.ones_like(top), (state * vectors[at]).sum(-1) - top.log()
    peak = products.amax(-1)
    total = products.sub_(peak.unsqueeze(-1)).exp_().sum(-1)
    return products, total, total.log() + peak


class _SoftmaxSum(torch.autograd.Function):
    """Cross-entropies among the products of states and vectors, and in the same pass the gradients of their sum."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, vectors: Tensor, positive: Tensor, included: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = max(LEAST_ROWS, AT_ONCE.get(state.device.type, 1 << 26) // max(1, len(vectors)))
        room = state.new_empty(min(rows, len(state)), len(vectors))  # for the products of every block
        losses, of_positive = torch.empty_like(positive), torch.empty_like(positive)
        of_state, of_vectors = torch.empty_like(state), torch.zeros_like(vectors)
        for first in range(0, len(state), rows):
            some = slice(first, first + rows)
            own = positive[some]
            block, total, others = _exponentials(
                torch.mm(state[some], vectors.T, out=room[: len(own)]), state[some], vectors
            )
            every = torch.where(included[some], others, torch.logaddexp(others, own))
            losses[some] = every - own
            scale = share[some] * (others - every).exp() / total
            of_positive[some] = share[some] * ((own - every).exp().masked_fill(included[some], 0) - 1)
            torch.mm(block, vectors, out=of_state[some]).mul_(scale.unsqueeze(-1))
            of_vectors.addmm_(block.T, state[some] * scale.unsqueeze(-1))
        ctx.save_for_backward(of_state, of_vectors, of_positive)
        ctx.mark_non_differentiable(losses)
        return (losses * share).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(grads[0] * gradient for gradient in ctx.saved_tensors), None, None


def softmax_sum(
    state: Tensor, vectors: Tensor, positive: Tensor, included: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum of full-softmax cross-entropies, whose logits are never all held; one derivative.

    A block of states at a time gives the losses and their gradients too, so that each product is computed once.

    Args:
        state: (n, D).
        vectors: (C, D) of the candidates.
        positive: (n,) scores of the targets.
        included: (n,) bool, whether the target is among the candidates; else it is counted beside them.
        share: (n,) weights, without gradients.

    Returns:
        the sum, and the losses (n,), without gradients.

    Example:
        >>> state, vectors, one = torch.zeros(1, 2), torch.ones(3, 2), torch.ones(1)
        >>> softmax_sum(state, vectors, torch.zeros(1), torch.tensor([True]), one)  # log 3
        (tensor(1.0986), tensor([1.0986]))
    """
    out: tuple[Tensor, Tensor] = _SoftmaxSum.apply(state, vectors, positive, included, share)  # type: ignore[no-untyped-call]
    return out


def products(state: Tensor, vectors: Tensor) -> Tensor:
    """Products of each state (..., D) with vectors (..., N, D) of its own, (..., N).

    Example:
        >>> products(torch.ones(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([3., 7.])
    """
    if vectors.shape[-2] < FEW:
        return (state.unsqueeze(-2) * vectors).sum(-1)
    if vectors.is_cuda:  # the gradient of the vectors is then laid out as they are
        return torch.matmul(vectors, state.unsqueeze(-1)).squeeze(-1)
    return torch.matmul(state.unsqueeze(-2), vectors.transpose(-1, -2)).squeeze(-2)


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of (..., S) losses over each user's real examples, (...); 0 for a user without any.

    Example:
        >>> weighted_mean(torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([3.])
    """
    return (loss * weight).sum(-1) / weight.sum(-1).clamp(min=LEAST)
