"""Weighted sums of standardised scores, a piece of the catalogue at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.functional.fusion import FLAT, check_scores
from metarec.recipes.sparse_scores import SparseScores, SparseStack
from metarec.scoring import Scores
from metarec.types import Scored

PIECE = 1 << 22  # scores (users, items) at once, where mean and deviation of a sum are asked for
ROUNDING = 2.0**-24  # of one operation in float32


@dataclass(frozen=True, eq=False)
class Group:
    """Models that know the same items, with what each counts for N users.

    Attributes:
        names: of the S models.
        parts: the scores of the first of them.
        sparse: those of the others, which are one number for most items; None if there is no such.
        known: (I,) bool.
        scale: (N, S) float64, weight over deviation; 0 where a model's scores are flat.
        mean: (N, S) float64, of a model's scores.
        unknown: (N, 1) float64, what an item gets that they do not know.
    """

    names: tuple[str, ...]
    parts: tuple[Scores, ...]
    sparse: SparseStack | None
    known: Tensor
    scale: Tensor
    mean: Tensor
    unknown: Tensor

    def __getitem__(self, users: slice) -> Self:
        parts = tuple(part[users] for part in self.parts)
        sparse = None if self.sparse is None else self.sparse[users]
        columns = {name: getattr(self, name)[users] for name in ("scale", "mean", "unknown")}
        return replace(self, parts=parts, sparse=sparse, **columns)

    @cached_property
    def _columns(self) -> tuple[Tensor, ...]:
        """(N, 1) each, the scales of ``parts``."""
        return self.scale[:, : len(self.parts)].split(1, 1)

    @cached_property
    def _rest(self) -> Tensor:
        """(N, 1), what all known items get on top of the weighted scores."""
        centre = self.mean if self.sparse is None else self.mean - F.pad(self.sparse.base, (len(self.parts), 0))
        return -(self.scale * centre).sum(1, keepdim=True)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) float32."""
        out = self.scale.new_zeros(len(self.scale), stop - start, dtype=torch.float32).add_(self._rest)
        if self.sparse is not None:
            self.sparse.add_to(out, start, self.scale[:, len(self.parts) :])
        for part, scale in zip(self.parts, self._columns, strict=True):
            out.addcmul_(part.approximate(start, stop), scale.float())
        return torch.where(self.known[start:stop], out, self.unknown.float())

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        out = self.scale.new_zeros(codes.shape).add_(self._rest)
        if self.sparse is not None:
            out += self.sparse.exact(codes, self.scale[:, len(self.parts) :])
        for part, scale in zip(self.parts, self._columns, strict=True):
            out.addcmul_(part.exact(codes), scale)
        return torch.where(self.known[codes], out, self.unknown)

    def error(self) -> Tensor:
        """(N,) float64."""
        scale = self.scale.abs()
        passed = [part.error().unsqueeze(1) for part in self.parts]
        if self.sparse is not None:
            passed.append(self.sparse.error().expand(len(scale), scale.shape[1] - len(passed)))
        each = torch.cat(passed, 1) + (2 * ROUNDING * (len(self.names) + 4)) * self.mean.abs()
        return (each * scale).sum(1) + (ROUNDING * (len(self.names) + 4)) * self.unknown.squeeze(1).abs()


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
        operations = 4 + len(self._terms) + sum(len(group.names) for group in self.groups)
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
            for name, part in zip(group.names, group.parts, strict=False):
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


def same_masks(known: Mapping[str, Tensor]) -> list[tuple[tuple[str, ...], Tensor]]:
    """Models that know the same items: their names, and (I,) bool the items.

    Example:
        >>> every, some = torch.arange(3) > 0, torch.arange(3) > 1
        >>> [names for names, _ in same_masks({"a": every, "b": some, "c": every})]
        [('a', 'c'), ('b',)]
    """
    out = list[tuple[tuple[str, ...], Tensor]]()
    left = dict(known)
    while left:
        mask = next(iter(left.values()))
        names = tuple(name for name, own in left.items() if torch.equal(own, mask))
        left = {name: own for name, own in left.items() if name not in names}
        out.append((names, mask))
    return out


def weighted_sum(
    parts: Mapping[str, Scores],
    groups: Sequence[tuple[tuple[str, ...], Tensor]],
    weights: tuple[Tensor, Tensor],
    *,
    sums: Sequence[tuple[Scores, Tensor]] = (),
    fitted: int | None = None,
) -> EnsembleScores:
    """The weighted sum of standardised scores; those of models that know the same items are added up first.

    Args:
        parts: of S models, by name.
        groups: the same names, see :func:`same_masks`.
        weights: (N, S) float64 each, of the models in the order of the groups, and what an item gets that a model does
            not know.
        sums: weighted sums of further models, and (I,) bool the items that any of those knows.
        fitted: catalogue rows that the sum is measured by, the first so many; all by default.

    Raises:
        ValueError: if the mean or deviation of a model's scores is not finite; names the model.

    Example:
        >>> from metarec.scoring import DenseScores
        >>> every = torch.arange(3) > 0
        >>> one = DenseScores(torch.tensor([[0.0, 1.0, 3.0]]), every)
        >>> weights = torch.tensor([[0.5, 2.0]]).double(), torch.zeros(1, 2).double()
        >>> weighted_sum({"a": one, "b": one}, [(("a", "b"), every)], weights).approximate(1, 3)
        tensor([[-2.5000,  2.5000]])
    """
    weight, unknown = (table[:, : len(parts)] for table in weights)
    found, done = list[Group](), 0
    for names, mask in groups:
        own = slice(done, done := done + len(names))
        found.append(_group({name: parts[name] for name in names}, mask, weight[:, own], unknown[:, own]))
    masks = (*(mask for _, mask in groups), *(mask for _, mask in sums))
    return EnsembleScores(tuple(found), tuple(own for own, _ in sums), masks, weight.abs().sum(1), fitted)


def _group(parts: Mapping[str, Scores], known: Tensor, weight: Tensor, unknown: Tensor) -> Group:
    stacked = {name: part for name, part in parts.items() if isinstance(part, SparseScores)}
    others = {name: part for name, part in parts.items() if name not in stacked}
    sparse = SparseStack.of(list(stacked.values())) if stacked else None
    names = (*others, *stacked)
    if names != tuple(parts):
        weight = weight[:, [list(parts).index(name) for name in names]]
    moments = [tuple(moment.unsqueeze(1) for moment in part.moments()) for part in others.values()]
    if sparse is not None:
        moments.append(sparse.moments())
    mean, deviation = (torch.cat(column, 1) for column in zip(*moments, strict=True))
    if not bool((mean + deviation).sum().isfinite()):
        for name, part in parts.items():
            check(part.approximate(0, len(known)), known, name)
    scale = torch.where(deviation > 0, weight / deviation, 0)
    return Group(names, tuple(others.values()), sparse, known, scale, mean, unknown.sum(1, keepdim=True))


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
