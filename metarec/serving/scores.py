"""Scores of the catalogue that were computed before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GivenScores:
    """Scores that were computed before.

    Attributes:
        given: (B, I).
    """

    given: Tensor

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.given[users])

    def error(self) -> Tensor:
        """(B,) zero: nothing is computed again."""
        return self.given.new_zeros(len(self.given), dtype=torch.float64)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(B, stop - start) of a piece of the catalogue."""
        return self.given[:, start:stop].clone()

    def exact(self, codes: Tensor) -> Tensor:
        """(B, K) float64 of item codes (B, K)."""
        return self.given.gather(1, codes).double()
