"""Operations on many users' small matrices, in plain torch; :mod:`metarec.meta.gpu` has faster ones for GPUs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def low_rank_add(y: Tensor, x: Tensor, X: Tensor, G: Tensor, one: float) -> None:
    """``y += (x X^T + one) G`` for each of B users: y (B, n, out), x (B, n, in), X (B, rank, in), G (B, rank, out)."""
    near = x @ X.transpose(1, 2)
    y.baddbmm_(near.add_(one) if one else near, G)


def scaled_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimensions, those of ``shape``, times weight, plus bias."""
    return torch.addcmul(bias, F.layer_norm(x, shape, None, None, eps), weight)
