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
        columns = {name: getattr(self, name)[users] for name in ("scale", "mean", "unknown", "weight")}
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
        return self.scale[:, self._is_sparse]

    @cached_property
    def _rest(self) -> list[Tensor]:
        """(N, 1), what all items get that a group knows, on top of the weighted scores."""
        centred = self.mean
        if self.sparse is not None:
            centred = centred.clone()
            centred[:, self._is_sparse] -= self.sparse.base
        centred = self.scale * centred
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
        narrow = self.scale.float().split(1, 1)
        for group, rest, unknown in zip(self.groups, self._rest, self.unknown.split(1, 1), strict=False):
            own = torch.zeros_like(total).add_(rest)
            for part, scale in zip(group.parts, narrow[group.columns], strict=False):
                own.addcmul_(part.approximate(start, stop), scale)
            total += torch.where(group.known[start:stop], own, unknown.float())
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
            own = torch.zeros_like(total).add_(rest)
            for part, scale in zip(group.parts, each[group.columns], strict=False):
                own.addcmul_(part.exact(codes), scale)
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
    stacked = [part for names, _ in groups for part in map(parts.__getitem__, names) if isinstance(part, SparseScores)]
    sparse = SparseStack.of(stacked) if stacked else None
    of_sparse = iter(() if sparse is None else zip(*(m.split(1, 1) for m in sparse.moments()), strict=True))
    found, moments, order = list[Group](), list[tuple[Tensor, ...]](), list[int]()
    for names, mask in groups:
        first, sorted_ = len(order), sorted(names, key=lambda name: isinstance(parts[name], SparseScores))
        others = [parts[name] for name in sorted_ if not isinstance(parts[name], SparseScores)]
        moments += [tuple(moment.unsqueeze(1) for moment in part.moments()) for part in others]
        moments += [next(of_sparse) for _ in range(len(names) - len(others))]
        order += [first + names.index(name) for name in sorted_]
        found.append(Group(tuple(sorted_), tuple(others), mask, slice(first, len(order))))
    scale, mean = _scaled(parts, groups, weight[:, order], moments)
    silent = torch.stack([unknown[:, group.columns].sum(1) for group in found], 1) if found else unknown
    masks = (*(mask for _, mask in groups), *(mask for _, mask in sums))
    terms = tuple(own for own, _ in sums)
    return EnsembleScores(tuple(found), sparse, terms, masks, scale, mean, silent, weight.abs().sum(1), fitted)


def _scaled(
    parts: Mapping[str, Scores],
    groups: Sequence[tuple[tuple[str, ...], Tensor]],
    weight: Tensor,
    moments: Sequence[tuple[Tensor, ...]],
) -> tuple[Tensor, Tensor]:
    """Weights over deviations, and means, (N, S) each, if those are finite."""
    if not moments:
        return weight, weight
    mean, deviation = (torch.cat(column, 1) for column in zip(*moments, strict=True))
    if not bool((mean + deviation).sum().isfinite()):
        for names, known in groups:
            for name in names:
                check(parts[name].approximate(0, len(known)), known, name)
    return torch.where(deviation > 0, weight / deviation, 0), mean


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
