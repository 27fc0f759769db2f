"""EASE: a linear item-to-item model with a closed form, which scores a new user from the history alone.

Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. There are no user parameters, so a cold
user needs no training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarec.data.dataset import Dataset
from metarec.functional.histories import seen_items
from metarec.types import Examples, Scored, Scorer


class EASE:
    """``scores = x B`` with ``B = I - P / diag(P)``, ``P = (X^T X + penalty I)^-1``, over the items seen upstream.

    Args:
        data: the upstream side of a split.
        penalty: of the ridge regression; more for smaller data.
        device: where the matrix, I x I, is inverted and kept.

    Raises:
        ValueError: if the penalty is not above 0.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.evaluation import evaluate
        >>> up, down = split_by_time(planted(users=60, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> evaluate(EASE(up), down, k=(5,)).metrics["recall@5"].mean > 5 / 40
        True
    """

    information = "upstream"

    def __init__(self, data: Dataset, *, penalty: float = 200.0, device: torch.device | str = "cpu") -> None:
        if not penalty > 0:
            raise ValueError(f"EASE: penalty must be above 0, got {penalty}")
        warm = torch.from_numpy(data.warm).to(device)
        gram = cooccurrences(data, device)[warm][:, warm]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), device=device)))
        weight = -inverse / inverse.diagonal()
        weight.fill_diagonal_(0)
        self.known, self.weight = warm, torch.zeros(len(warm), len(warm), device=device)
        self.weight[warm.nonzero(), warm.nonzero().T] = weight
        self.fitted_until = float(data.time.max())

    def adapt(self, support: Examples) -> Scorer:
        """Nothing to adapt: the history is all it reads."""
        return lambda examples: from_history(examples, self.weight, self.known)


def cooccurrences(data: Dataset, device: torch.device | str = "cpu") -> Tensor:
    """(I, I) how many users clicked both items; the diagonal has how many clicked one."""
    user, item = (torch.from_numpy(column).to(device) for column in (data.user, data.item))
    seen = torch.zeros(len(data.user_codes), data.catalog.size, device=device)
    seen[torch.unique(user, return_inverse=True)[1], item] = 1
    return seen.T @ seen


def from_history(examples: Examples, weight: Tensor, known: Tensor) -> Scored:
    """What the items of each history say together: the sum of their rows of ``weight``, (I, I)."""
    seen = seen_items(examples, len(weight))
    known, weight = known.to(seen.device), weight.to(seen.device)
    state = weight.new_zeros(*examples.target.shape, 1)
    return Scored(seen.to(weight.dtype) @ weight, state, known, (seen & known).any(-1))
