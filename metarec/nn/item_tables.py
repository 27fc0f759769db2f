"""Item vectors of several learners side by side, with the moments from which scores are standardised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metarec.functional.appending import appended, roomy, side_by_side


@dataclass(frozen=True, eq=False)
class ItemTables:
    """The item vectors of M learners side by side, and their moments over the items that each knows.

    Attributes:
        rows: (I, M * D + M) vectors, zero where a learner does not know the item, then 1 for each learner that does.
        by_column: the same, the numbers of a column side by side, which a product of one query reads twice as fast.
        known: (I, M) 1 where a learner knows the item.
        names: of the learners.
        fitted: rows that moments are taken over, the first so many: the items that training knew.
        mean: (M, D) float64.
        covariance: (M, D, D) float64.
        count: (M,) items that each learner knows and training knew.
        alike: whether all learners know the same items.
        longest: the largest length of a row.

    Example:
        >>> tables = ItemTables.of([torch.eye(3)], [torch.arange(3) > 0], ["id"])
        >>> tables.rows.tolist(), tables.mean.tolist()
        ([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]], [[0.0, 0.5, 0.5]])
    """

    rows: Tensor
    by_column: Tensor
    known: Tensor
    names: Sequence[str]
    fitted: int
    mean: Tensor
    covariance: Tensor
    count: Tensor
    alike: bool
    longest: float

    @classmethod
    def of(
        cls, tables: Sequence[Tensor], known: Sequence[Tensor], names: Sequence[str], fitted: int | None = None
    ) -> ItemTables:
        """From each learner's table (I, D), items it knows (I,) and name, and how many rows training knew; or all."""
        fitted = len(tables[0]) if fitted is None else fitted
        flags = torch.stack(list(known), 1)
        rows = _rows(tables, known)
        means, covariances = [], []
        for table, own in zip(tables, known, strict=True):
            vectors = table[:fitted][own[:fitted]].double()
            mean = vectors.mean(0) if len(vectors) else table.new_zeros(table.shape[1]).double()
            centred = vectors - mean
            means.append(mean)
            covariances.append(centred.T @ centred / max(1, len(vectors)))
        return cls(
            rows,
            roomy(*rows.shape, like=rows, by_column=True).copy_(rows),
            flags.to(rows.dtype),
            tuple(names),
            fitted,
            torch.stack(means),
            torch.stack(covariances),
            flags[:fitted].sum(0),
            bool((flags == flags[:, :1]).all()),
            float(rows.norm(dim=1).max()),
        )

    def with_more(self, tables: Sequence[Tensor], known: Sequence[Tensor]) -> ItemTables:
        """The same and more items after them; moments stay those of the items that training knew.

        Args:
            tables: each learner's vectors (m, D) of the new items.
            known: which of these it knows, (m,) each.
        """
        flags, rows = torch.stack(list(known), 1), _rows(tables, known)
        return replace(
            self,
            rows=appended(self.rows, rows),
            by_column=appended(self.by_column, rows),
            known=appended(self.known, flags),
            alike=self.alike and bool((flags == flags[:, :1]).all()),
            longest=max([self.longest, *rows.norm(dim=1).tolist()]),
        )

    def to(self, device: torch.device | str) -> ItemTables:
        """The same on another device."""
        tensors = {
            name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "by_column"
        }
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        return replace(self, **moved, by_column=moved["rows"].T.contiguous().T)

    @property
    def columns(self) -> Tensor:
        """The rows transposed, (M * D + M, I)."""
        return self.by_column.T

    def vectors(self, learner: int) -> Tensor:
        """(I, D) of one learner, zero where it does not know the item."""
        dim = self.mean.shape[1]
        return self.rows[:, learner * dim : (learner + 1) * dim]


def _rows(tables: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
    """(n, M * D + M): each learner's vectors, zero where it does not know the item, and 1 where it does."""
    vectors = [torch.where(own[:, None], table, 0) for table, own in zip(tables, known, strict=True)]
    return side_by_side([*vectors, torch.stack(list(known), 1).to(tables[0])])
