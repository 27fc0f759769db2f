"""Weighted sums of standardised scores, a piece of the catalogue at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.functional.fusion import FLAT, check_scores
from metarec.recipes.sparse_scores import SparseScores, SparseStack
from metarec.recipes.table_scores import TableScores
from metarec.scoring import Scores
from metarec.types import Scored

PIECE = 1 << 22  # scores (users, items) at once, where mean and deviation of a sum are asked for
ROUNDING = 2.0**-24  # of one operation in float32


@dataclass(frozen=True, eq=False)
class Group:
    """Models that know the same items.

    Attributes:
        names: of the models.
        parts: the scores of those that are not sparse.
        known: (I,) bool.
        columns: the places of all of them, the sparse ones last.
    """

    names: tuple[str, ...]
    parts: tuple[Scores, ...]
    known: Tensor
    columns: slice

    @property
    def sparse(self) -> slice:
        """The places of the sparse ones."""
        return slice(self.columns.start + len(self.parts), self.columns.stop)


@dataclass(frozen=True, eq=False)
class EnsembleScores:
    """Scores of N users: ``sum_s w_s z_s + b_s [s does not know the item]``, z the models' standardised scores.

    Attributes:
        groups: the S models that are standardised one by one.
        sparse: the scores of those that are one number for most items; None if there is no such.
        sums: weighted sums of further models.
        masks: (I,) bool each, the items that some of the models know.
        scale: (N, S) float64, weight over deviation; 0 where a model's scores are flat.
        mean: (N, S) float64, of a model's scores.
        centre: (N, S) float64, how far that is above what most items have of a sparse model.
        unknown: (N, G) float64, what an item gets that a group does not know.
        weight: (N,) float64, the sum of the absolute weights of the groups' models.
        fitted: catalogue rows that the mean and deviation are taken over, the first so many; None for all.
        repeats: of items that a user has clicked before, where they are weighed apart; their base is of no meaning.
    """

    groups: tuple[Group, ...]
    sparse: SparseStack | None
    sums: tuple[Scores, ...]
    masks: tuple[Tensor, ...]
    scale: Tensor
    mean: Tensor
    centre: Tensor
    unknown: Tensor
    weight: Tensor
    fitted: int | None
    repeats: SparseScores | None = None

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        groups = tuple(replace(group, parts=tuple(part[users] for part in group.parts)) for group in self.groups)
        sparse = None if self.sparse is None else self.sparse[users]
        columns = {name: getattr(self, name)[users] for name in ("scale", "mean", "centre", "unknown", "weight")}
        repeats = None if self.repeats is None else self.repeats[users]
        sums = tuple(own[users] for own in self.sums)
        return replace(self, groups=groups, sparse=sparse, sums=sums, repeats=repeats, **columns)

    def with_repeats(self, history: Tensor, apart: Self) -> Self:
        """The same scores, those of the items in histories (N, L) taken from other weights' sum."""
        size = len(self.masks[0])
        row = torch.arange(len(history), device=history.device).unsqueeze(1)
        key, place = (row * size + history).unique(return_inverse=True)
        value = apart.exact(history)
        value = value.new_zeros(len(key)).scatter_(0, place.flatten(), value.flatten())
        real = key % size > 0
        start = F.pad(torch.bincount(key[real] // size, minlength=len(history)).cumsum(0), (1, 0))
        return replace(self, repeats=SparseScores(start, key[real] % size, value[real], 0.0, self.known))

    @property
    def known(self) -> Tensor:
        """(I,) bool, items that any model knows."""
        return torch.stack(self.masks).any(0)

    @cached_property
    def _is_sparse(self) -> list[bool]:
        """Of each model."""
        return [n >= len(group.parts) for group in self.groups for n in range(len(group.names))]

    @cached_property
    def _of_sparse(self) -> Tensor:
        """(N, ...) the scales of the sparse models."""
        return torch.cat([self.scale[:, group.sparse] for group in self.groups], 1)

    @cached_property
    def _rest(self) -> list[Tensor]:
        """(N, 1), what all items get that a group knows, on top of the weighted scores."""
        centred = self.scale * self.centre
        return [-centred[:, group.columns].sum(1, keepdim=True) for group in self.groups]

    def error(self) -> Tensor:
        """(N,) float64, how far ``approximate`` may be from ``exact``.

        A standardised score is at most the root of the number of items.
        """
        models = len(self._is_sparse)
        rounding = ROUNDING * (4 + 2 * len(self.groups) + len(self.sums) + models)
        total = rounding * (self.weight * math.sqrt(self.fitted or len(self.masks[0])) + self.unknown.abs().sum(1))
        for own in self.sums:
            total = total + own.error()
        if self.repeats is not None:
            total = total + self.repeats.error()
        if not models:
            return total
        parts = iter([part.error() for group in self.groups for part in group.parts])
        sparse = None if self.sparse is None else self.sparse.error().expand(len(self))
        passed = torch.stack([sparse if own and sparse is not None else next(parts) for own in self._is_sparse], 1)
        return total + ((passed + 2 * rounding * self.mean.abs()) * self.scale.abs()).sum(1)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue.

        Raises:
            ValueError: if a score is not finite; names the model.
        """
        total = self.scale.new_zeros(len(self), stop - start, dtype=torch.float32)
        narrow, silent = (table.float().split(1, 1) for table in (self.scale, self.unknown))
        for group, rest, unknown in zip(self.groups, self._rest, silent, strict=False):
            own = rest.float()
            for part, scale in zip(group.parts, narrow[group.columns], strict=False):
                read = part.shown if isinstance(part, TableScores) else part.approximate
                own = torch.addcmul(own, read(start, stop), scale)
            total += torch.where(group.known[start:stop], own, unknown)
        if self.sparse is not None:
            self.sparse.add_to(total, start, self._of_sparse)
        for term in self.sums:
            total += term.approximate(start, stop)
        if self.repeats is not None:
            self.repeats.write_to(total, start)
        if not bool(total.sum().isfinite()):
            self._tell(total, start, stop)
        return total

    def _tell(self, total: Tensor, start: int, stop: int) -> None:
        for group in self.groups:
            for name, part in zip(group.names, group.parts, strict=False):
                check(part.approximate(start, stop), group.known[start:stop], name, start)
        check(total, self.known[start:stop], "ensemble", start)

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        total, each = self.scale.new_zeros(codes.shape), self.scale.split(1, 1)
        for group, rest, unknown in zip(self.groups, self._rest, self.unknown.split(1, 1), strict=False):
            own = rest
            for part, scale in zip(group.parts, each[group.columns], strict=False):
                own = torch.addcmul(own, part.exact(codes), scale)
            total += torch.where(group.known[codes], own, unknown)
        if self.sparse is not None:
            total += self.sparse.exact(codes, self._of_sparse)
        for term in self.sums:
            total += term.exact(codes)
        return total if self.repeats is None else self.repeats.exact(codes, instead=total)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (N,) float64, over the known items that training knew; 0 where flat."""
        known = self.known[: self.fitted]
        count = max(1, int(known.sum()))
        mean = torch.zeros_like(self.weight)
        for piece in self._pieces(known):
            mean += piece.sum(1) / count
        square, largest = torch.zeros_like(mean), torch.zeros_like(mean)
        for piece in self._pieces(known):
            centred = piece - mean.unsqueeze(1)
            square += centred.square().sum(1)
            largest = torch.maximum(largest, F.pad(centred.abs(), (0, 1)).amax(1))
        return mean, torch.where(largest <= FLAT * mean.abs(), 0, (square / count).sqrt())

    def _pieces(self, known: Tensor) -> Iterator[Tensor]:
        """(N, ...) float64 scores of the known items, a piece of the catalogue at a time."""
        size = max(1, PIECE // max(1, len(self)))
        for start in range(0, len(known), size):
            stop = min(len(known), start + size)
            yield self.approximate(start, stop)[:, known[start:stop]].double()


def check(values: Tensor, known: Tensor, name: str, start: int = 0) -> None:
    """See that scores (N, C) of the known items (C,) are finite.

    Args:
        values: of a piece of the catalogue.
        known: the same piece.
        name: of the model, for messages.
        start: where the piece begins.

    Raises:
        ValueError: if one is not.
    """
    values, known = F.pad(values, (start, 0)), F.pad(known, (start, 0))
    check_scores(Scored(values.unsqueeze(1), values[:, :0], known, known[:0]), name)
