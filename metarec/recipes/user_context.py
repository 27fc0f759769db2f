"""What the weights of an ensemble depend on: a user's context."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.functional.histories import readable
from metarec.types import Examples


def user_context(examples: Examples, warm: Tensor) -> Tensor:
    """(B, Q, 3): clicks so far (at least 1), the share of them that is cold, log of the gap (NaN where unknown).

    Args:
        examples: of B users.
        warm: (I,) bool, items seen upstream.

    Example:
        >>> clicks = Examples(torch.tensor([[3, 1, 2]]), torch.tensor([[1]]), torch.tensor([[2]]),
        ...                   torch.zeros(1, 1, 0, dtype=torch.int64), torch.ones(1, 1))
        >>> user_context(clicks, torch.tensor([False, True, True, False])).tolist()
        [[[2.0, 0.5, nan]]]
    """
    read = readable(examples) & (examples.history > 0)[:, None]
    clicks = read.sum(-1).clamp(min=1).float()
    cold = (read & ~warm[examples.history][:, None]).sum(-1) / clicks
    gap = torch.full_like(clicks, torch.nan) if examples.gap is None else examples.gap.clamp(min=0).log1p().float()
    return torch.stack([clicks, cold, gap], -1)
