"""Causal self-attention, written as matmul and softmax.

``F.scaled_dot_product_attention`` falls back to a slow loop under ``vmap`` and has no second derivative on the CPU;
these few lines have both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., L, D) -> (..., heads, L, D / heads).

    Example:
        >>> split_heads(torch.zeros(5, 7, 8), heads=2).shape
        torch.Size([5, 2, 7, 4])
    """
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, L, D / heads) -> (..., L, D), the inverse of :func:`split_heads`.

    Example:
        >>> merge_heads(torch.zeros(5, 2, 7, 4)).shape
        torch.Size([5, 7, 8])
    """
    return x.transpose(-3, -2).flatten(-2)


def causal_attention(
    query: Tensor, key: Tensor, keep: Tensor, bias: Tensor | None = None, at: Tensor | None = None
) -> Tensor:
    """Attention weights in which position l sees the real positions up to l.

    Args:
        query: (..., heads, Q, d).
        key: (..., heads, L, d).
        keep: (..., L) bool, False at padding.
        bias: (..., Q, L) added to the logits of every head, e.g. the similarity of item features.
        at: (..., Q) the positions of the queries; by default 0 to L - 1.

    Returns:
        (..., heads, Q, L), each row summing to 1. A row that sees nothing is uniform, never NaN: plain products and a
        softmax compute it, since fused kernels disagree about such rows.

    Example:
        >>> q = torch.zeros(1, 3, 4)
        >>> causal_attention(q, q, torch.tensor([True, True, False]))[0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000]])
        >>> causal_attention(q[:, :1], q, torch.tensor([True, True, False]), at=torch.tensor([1]))[0]
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    positions = torch.arange(key.shape[-2], device=key.device)
    hidden = ((positions if at is None else at).unsqueeze(-1) < positions) | ~keep.unsqueeze(-2)
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias.unsqueeze(-3)
    lowest = max(-1e9, torch.finfo(logits.dtype).min)  # finite: a row that is masked whole stays defined
    return logits.masked_fill(hidden.unsqueeze(-3), lowest).softmax(-1)


def attend(
    qkv: Tensor, heads: int, keep: Tensor, bias: Tensor | None = None, at: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Causal multi-head attention from queries, keys and values that lie side by side.

    Args:
        qkv: (..., L, 3 D).
        heads: of width D / heads.
        keep: (..., L) bool, False at padding.
        bias: (..., L, L) added to the logits of every head.
        at: (..., Q) positions that look; all L by default.
        dropout: share of the attention weights that are dropped.

    Returns:
        (..., Q, D).

    Example:
        >>> attend(torch.zeros(5, 7, 24), 2, torch.ones(5, 7, dtype=torch.bool)).shape
        torch.Size([5, 7, 8])
    """
    query, key, value = split_heads(qkv.unflatten(-1, (3, -1)).movedim(-2, 0), heads).contiguous()
    if at is not None:
        query = rows(query, at.unsqueeze(-2).expand(*query.shape[:-2], -1))
        bias = None if bias is None else rows(bias, at)
    weights = F.dropout(causal_attention(query, key, keep, bias, at), dropout, training=dropout > 0)
    return merge_heads(weights @ value)


def rows(x: Tensor, at: Tensor) -> Tensor:
    """The rows (..., Q, D) of x (..., L, D) at positions (..., Q).

    Example:
        >>> rows(torch.eye(3), torch.tensor([2]))
        tensor([[0., 0., 1.]])
    """
    return x.gather(-2, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))
