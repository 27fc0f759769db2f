"""Scores that many users share, made a piece of the catalogue at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from metarec.recipes.sparse_scores import rounding
from metarec.scoring import DenseScores


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """A few rows of scores of the whole catalogue, which many users share.

    Attributes:
        values: (T, I) float64.
        known: (I,) bool, items that the moments are taken over.
    """

    values: Tensor
    known: Tensor

    @cached_property
    def narrow(self) -> Tensor:
        """(T, I) float32."""
        return self.values.float()

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each row, (T,)."""
        return DenseScores(self.values, self.known).moments()

    @cached_property
    def error(self) -> Tensor:
        """(T,) float64, by rounding to float32."""
        return rounding(self.values.abs().amax(1))

    def to(self, device: torch.device) -> Self:
        """The same on another device; itself on its own."""
        return self if self.values.device == device else type(self)(self.values.to(device), self.known.to(device))


@dataclass(frozen=True, eq=False)
class TableScores:
    """Scores of N users: of each, ``row`` (N,) says which row of a table.

    Example:
        >>> table = ScoreTable(torch.tensor([[0.0, 1.0, 3.0]]).double(), torch.arange(3) > 0)
        >>> scores = TableScores(table, torch.zeros(2, dtype=torch.int64))
        >>> scores.approximate(1, 3).tolist(), scores.moments()[0].tolist()
        ([[1.0, 3.0], [1.0, 3.0]], [2.0, 2.0])
    """

    table: ScoreTable
    row: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.table, self.row[users])

    def error(self) -> Tensor:
        """(N,) float64, by rounding to float32."""
        return self.table.error[self.row]

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) float32 of a piece of the catalogue."""
        return self.table.narrow[:, start:stop][self.row]

    def shown(self, start: int, stop: int) -> Tensor:
        """The same, to be read only: one row that all users share is not copied."""
        narrow = self.table.narrow[:, start:stop]
        return narrow.expand(len(self), -1) if len(narrow) == 1 else narrow[self.row]

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        return self.table.values[self.row.unsqueeze(1), codes]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the known items."""
        mean, deviation = self.table.moments
        return mean[self.row], deviation[self.row]
