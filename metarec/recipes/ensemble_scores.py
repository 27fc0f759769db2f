"""Weighted sums of standardised scores, a piece of the catalogue at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.functional.fusion import FLAT, check_scores
from metarec.scoring import Scores
from metarec.types import Scored

PIECE = 1 << 22  # scores (users, items) at once, where mean and deviation of a sum are asked for
ROUNDING = 2.0**-24  # of one operation in float32


@dataclass(frozen=True, eq=False)
class Group:
    """Models that know the same items, with what each counts for N users.

    Attributes:
        names: of the S models.
        parts: their scores.
        known: (I,) bool.
        scale: (N, 1) float64 each, weight over deviation; 0 where a model's scores are flat.
        mean: (N, 1) float64 each, of a model's scores.
        unknown: (N, 1) float64, what an item gets that they do not know.
    """

    names: tuple[str, ...]
    parts: tuple[Scores, ...]
    known: Tensor
    scale: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    unknown: Tensor

    def __getitem__(self, users: slice) -> Self:
        parts = tuple(part[users] for part in self.parts)
        scale, mean = (tuple(column[users] for column in columns) for columns in (self.scale, self.mean))
        return replace(self, parts=parts, scale=scale, mean=mean, unknown=self.unknown[users])

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) float32."""
        out = self.unknown.new_zeros(len(self.unknown), stop - start, dtype=torch.float32)
        for part, scale in zip(self.parts, self.scale, strict=True):
            out.addcmul_(part.approximate(start, stop), scale.float())
        out -= torch.stack([scale * mean for scale, mean in zip(self.scale, self.mean, strict=True)]).sum(0).float()
        return torch.where(self.known[start:stop], out, self.unknown.float())

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        out = torch.zeros(codes.shape, dtype=torch.float64, device=codes.device)
        for part, scale, mean in zip(self.parts, self.scale, self.mean, strict=True):
            out += (part.exact(codes) - mean) * scale
        return torch.where(self.known[codes], out, self.unknown)

    def error(self) -> Tensor:
        """(N,) float64."""
        scale, mean = torch.cat(self.scale, 1).abs(), torch.cat(self.mean, 1).abs()
        passed = torch.stack([part.error() for part in self.parts], 1) * scale
        own = 2 * (scale * mean).sum(1) + self.unknown.squeeze(1).abs()
        return passed.sum(1) + ROUNDING * (len(self.parts) + 4) * own


@dataclass(frozen=True, eq=False)
class EnsembleScores:
    """Scores of N users: ``sum_s w_s z_s + b_s [s does not know the item]``, z the models' standardised scores.

    Attributes:
        groups: of models that are standardised one by one.
        sums: weighted sums of further models.
        masks: (I,) bool each, the items that some of the models know.
        weight: (N,) float64, the sum of the absolute weights of the groups' models.
        fitted: catalogue rows that the mean and deviation are taken over, the first so many; None for all.
    """

    groups: tuple[Group, ...]
    sums: tuple[Scores, ...]
    masks: tuple[Tensor, ...]
    weight: Tensor
    fitted: int | None

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        groups, sums = tuple(each[users] for each in self.groups), tuple(each[users] for each in self.sums)
        return replace(self, groups=groups, weight=self.weight[users], sums=sums)

    @property
    def known(self) -> Tensor:
        """(I,) bool, items that any model knows."""
        return torch.stack(self.masks).any(0)

    @property
    def _terms(self) -> tuple[Group | Scores, ...]:
        return (*self.groups, *self.sums)

    def error(self) -> Tensor:
        """(N,) float64, how far ``approximate`` may be from ``exact``.

        A standardised score is at most the root of the number of items.
        """
        operations = 4 + len(self._terms) + sum(len(group.parts) for group in self.groups)
        rounding = ROUNDING * operations * self.weight * math.sqrt(self.fitted or len(self.masks[0]))
        return torch.stack([term.error() for term in self._terms]).sum(0) + rounding

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue.

        Raises:
            ValueError: if a score is not finite; names the model.
        """
        first, *others = self._terms
        total = first.approximate(start, stop)
        for term in others:
            total += term.approximate(start, stop)
        if not bool(total.sum().isfinite()):
            self._tell(total, start, stop)
        return total

    def _tell(self, total: Tensor, start: int, stop: int) -> None:
        for group in self.groups:
            for name, part in zip(group.names, group.parts, strict=True):
                check(part.approximate(start, stop), group.known[start:stop], name, start)
        check(total, self.known[start:stop], "ensemble", start)

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        total = torch.zeros(codes.shape, dtype=torch.float64, device=codes.device)
        for term in self._terms:
            total += term.exact(codes)
        return total

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


def weighted_sum(
    parts: Mapping[str, Scores],
    known: Mapping[str, Tensor],
    weights: tuple[Tensor, Tensor],
    *,
    sums: Sequence[tuple[Scores, Tensor]] = (),
    fitted: int | None = None,
) -> EnsembleScores:
    """The weighted sum of standardised scores; those of models that know the same items are added up first.

    Args:
        parts: of S models, by name.
        known: (I,) bool each, the items that a model knows.
        weights: (N, S) float64 each, of the models, and what an item gets that a model does not know.
        sums: weighted sums of further models, and (I,) bool the items that any of those knows.
        fitted: catalogue rows that the sum is measured by, the first so many; all by default.

    Raises:
        ValueError: if the mean or deviation of a model's scores is not finite; names the model.

    Example:
        >>> from metarec.scoring import DenseScores
        >>> every = torch.arange(3) > 0
        >>> one = DenseScores(torch.tensor([[0.0, 1.0, 3.0]]), every)
        >>> weights = torch.tensor([[0.5, 2.0]]).double(), torch.zeros(1, 2).double()
        >>> weighted_sum({"a": one, "b": one}, {"a": every, "b": every}, weights).approximate(1, 3)
        tensor([[-2.5000,  2.5000]])
    """
    groups = list(_groups(parts, known, *weights)) if parts else []
    masks = (*(group.known for group in groups), *(mask for _, mask in sums))
    return EnsembleScores(tuple(groups), tuple(own for own, _ in sums), masks, weights[0].abs().sum(1), fitted)


def _groups(
    parts: Mapping[str, Scores], known: Mapping[str, Tensor], weight: Tensor, unknown: Tensor
) -> Iterator[Group]:
    moments = [part.moments() for part in parts.values()]
    mean, deviation = (torch.stack(column, 1) for column in zip(*moments, strict=True))
    if not bool((mean + deviation).sum().isfinite()):
        for name, part in parts.items():
            check(part.approximate(0, len(known[name])), known[name], name)
    names, left = list(parts), list(range(len(parts)))
    scales, means, silent = (
        table.split(1, 1) for table in (torch.where(deviation > 0, weight / deviation, 0), mean, unknown)
    )
    while left:
        mask = known[names[left[0]]]
        same = [s for s in left if torch.equal(known[names[s]], mask)]
        left = [s for s in left if s not in same]
        own = tuple(names[s] for s in same)
        scale, centre = (tuple(column[s] for s in same) for column in (scales, means))
        total = torch.cat([silent[s] for s in same], 1).sum(1, keepdim=True)
        yield Group(own, tuple(parts[name] for name in own), mask, scale, centre, total)


def standardised(scores: Scores, known: Tensor, name: str) -> Tensor:
    """(N, I) float32 scores of mean 0 and deviation 1 over the known items; unknown ones get 0.

    Raises:
        ValueError: if a score is not finite; names the model.
    """
    values = scores.approximate(0, len(known))
    check(values, known, name)
    mean, deviation = scores.moments()
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    z = (values - mean.unsqueeze(1).to(values)) * scale.unsqueeze(1).to(values)
    return torch.where(known, z, 0)


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
