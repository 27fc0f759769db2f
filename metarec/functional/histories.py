"""What an example may read of its user's history."""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.types import Examples


def readable(examples: Examples) -> Tensor:
    """(B, S, L) bool, the positions of the history that each example may read, padding included.

    Example:
        >>> clicks = Examples(torch.tensor([[3, 1, 2]]), torch.tensor([[0, 1]]), torch.tensor([[1, 2]]),
        ...                   torch.tensor([[[4], [4]]]), torch.ones(1, 2))
        >>> readable(clicks)[0].tolist()
        [[True, False, False], [True, True, False]]
    """
    history = examples.history
    return torch.arange(history.shape[-1], device=history.device) <= examples.position[..., None]


def seen_items(examples: Examples, items: int) -> Tensor:
    """(B, S, I) bool, the items of the history that each example may read; never the padding.

    Args:
        examples: of B users.
        items: I, padding included.

    Example:
        >>> clicks = Examples(torch.tensor([[3, 1, 0]]), torch.tensor([[0, 2]]), torch.tensor([[1, 2]]),
        ...                   torch.tensor([[[4], [4]]]), torch.ones(1, 2))
        >>> seen_items(clicks, 5)[0].int().tolist()
        [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]]
    """
    seen = torch.zeros(*examples.target.shape, items, dtype=torch.bool, device=examples.history.device)
    seen = seen.scatter(-1, examples.history[:, None] * readable(examples), value=True)
    seen[..., 0] = False
    return seen
