"""The log-sum-exp over a large catalogue, whose logits are never all held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HELD = {"cpu": 1 << 19, "cuda": 1 << 26}  # logits of one block


class _LogSumExp(torch.autograd.Function):
    """A running log-sum-exp over blocks of vectors; the backward pass computes each block anew."""

    @staticmethod
    def forward(state: Tensor, vectors: Tensor) -> Tensor:
        out = state.new_full((len(state),), -torch.inf)
        for some in _blocks(state, vectors):
            out = torch.logaddexp(out, (state @ vectors[some].T).logsumexp(-1))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _Gradients.apply(*ctx.saved_tensors, gradient)  # type: ignore[no-untyped-call]
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], state: Tensor, vectors: Tensor) -> tuple[Tensor, int]:
        """All users at once, where the vectors are shared; else one after another."""
        state = state.movedim(in_dims[0], 0) if in_dims[0] is not None else state.expand(info.batch_size, *state.shape)
        if in_dims[1] is None:
            return log_sum_exp(state, vectors), 0
        return torch.stack([log_sum_exp(s, v) for s, v in zip(state, vectors.movedim(in_dims[1], 0), strict=True)]), 0


class _Gradients(torch.autograd.Function):
    """Gradients of the weighted sum of log-sum-exps by states and vectors, with one more derivative."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, vectors: Tensor, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(state, vectors, total, weight)
        of_state, of_vectors = torch.zeros_like(state), torch.empty_like(vectors)
        for some in _blocks(state, vectors):
            chance = _chances(state, vectors[some], total).mul_(weight.unsqueeze(-1))
            of_state.addmm_(chance, vectors[some])
            torch.mm(chance.T, state, out=of_vectors[some])
        return of_state, of_vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of ``sum of weight * sum over c of p_c q_c``, where ``q_c = a . v_c + b_c . s``."""
        state, vectors, total, weight = ctx.saved_tensors
        mean = torch.zeros_like(total)
        for some in _blocks(state, vectors):
            moved = torch.mm(a, vectors[some].T).addmm_(state, b[some].T)
            mean += (_chances(state, vectors[some], total) * moved).sum(-1)
        of_state, of_vectors = torch.zeros_like(state), torch.empty_like(vectors)
        for some in _blocks(state, vectors):
            moved = torch.mm(a, vectors[some].T).addmm_(state, b[some].T).sub_(mean.unsqueeze(-1))
            chance = _chances(state, vectors[some], total).mul_(weight.unsqueeze(-1))
            of_state.addmm_(chance, b[some])
            torch.mm(chance.T, a, out=of_vectors[some])
            chance.mul_(moved)
            of_state.addmm_(chance, vectors[some])
            of_vectors[some].addmm_(chance.T, state)
        return of_state, of_vectors, None, mean


def _blocks(state: Tensor, vectors: Tensor) -> list[slice]:
    size = max(1, HELD.get(state.device.type, 1 << 26) // max(1, len(state)))
    return [slice(first, first + size) for first in range(0, len(vectors), size)]


def _chances(state: Tensor, vectors: Tensor, total: Tensor) -> Tensor:
    """(n, C) the softmax over all vectors, of some of them."""
    return torch.mm(state, vectors.T).sub_(total.unsqueeze(-1)).exp_()


def log_sum_exp(state: Tensor, vectors: Tensor) -> Tensor:
    """Log-sum-exp of the products of states with all vectors, a block of vectors at a time; two derivatives.

    Args:
        state: (..., D).
        vectors: (C, D).

    Returns:
        (...).

    Example:
        >>> log_sum_exp(torch.zeros(2, 3), torch.ones(4, 3))  # log 4
        tensor([1.3863, 1.3863])
    """
    out: Tensor = _LogSumExp.apply(state.reshape(-1, state.shape[-1]), vectors)  # type: ignore[no-untyped-call]
    return out.view(state.shape[:-1])
