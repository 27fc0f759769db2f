"""Scores of several models with their means and deviations, which are added up with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec.recipes.ensemble_scores import EnsembleScores, Group, check
from metarec.recipes.sparse_scores import SparseScores, SparseStack
from metarec.scoring import Scores

Groups = Sequence[tuple[tuple[str, ...], Tensor]]


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


@dataclass(frozen=True, eq=False)
class MeasuredScores:
    """Scores of N users by S models with their means and deviations, which are the same whatever the weights.

    Attributes:
        groups: the models.
        sparse: see :class:`EnsembleScores`.
        order: (S,) of each column the place among the models as they were given.
        moments: (N, S) float64 mean, mean above what most items have of a sparse model, and deviation, 0 where flat.

    Example:
        >>> from metarec.scoring import DenseScores
        >>> every = torch.arange(3) > 0
        >>> one = DenseScores(torch.tensor([[0.0, 1.0, 3.0]]), every)
        >>> weights = torch.tensor([[0.5, 2.0]]).double(), torch.zeros(1, 2).double()
        >>> MeasuredScores.of({"a": one, "b": one}, [(("a", "b"), every)]).weighted(*weights).approximate(1, 3)
        tensor([[-2.5000,  2.5000]])
    """

    groups: tuple[Group, ...]
    sparse: SparseStack | None
    order: Sequence[int]
    moments: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def of(cls, parts: Mapping[str, Scores], groups: Groups) -> Self:
        """From the scores of each model, by name, and the same names, see :func:`same_masks`.

        Raises:
            ValueError: if the mean or deviation of a model's scores is not finite; names the model.
        """
        found, stacked, order = list[Group](), list[SparseScores](), list[int]()
        for names, mask in groups:
            first, sorted_ = len(order), sorted(names, key=lambda name: isinstance(parts[name], SparseScores))
            each = [parts[name] for name in sorted_]
            others = tuple(own for own in each if not isinstance(own, SparseScores))
            stacked += [own for own in each if isinstance(own, SparseScores)]
            order += [first + names.index(name) for name in sorted_]
            found.append(Group(tuple(sorted_), others, mask, slice(first, len(order))))
        sparse = SparseStack.of(stacked) if stacked else None
        out = cls(tuple(found), sparse, order, _moments(found, sparse) if order else None)
        if out.moments is not None and not bool((out.moments[0] + out.moments[2]).sum().isfinite()):
            for name, known in ((name, known) for names, known in groups for name in names):
                check(parts[name].approximate(0, len(known)), known, name)
        return out

    def weighted(
        self, weight: Tensor, unknown: Tensor, *, sums: Sequence[tuple[Scores, Tensor]] = (), fitted: int | None = None
    ) -> EnsembleScores:
        """The weighted sum of standardised scores; those of models that know the same items are added up first.

        Args:
            weight: (N, S) float64, of the models in the order of the groups.
            unknown: likewise, what an item gets that a model does not know.
            sums: weighted sums of further models, and (I,) bool the items that any of those knows.
            fitted: catalogue rows that the sum is measured by, the first so many; all by default.
        """
        masks = (*(group.known for group in self.groups), *(mask for _, mask in sums))
        terms, total = tuple(own for own, _ in sums), weight.abs().sum(1)
        if self.moments is None:
            return EnsembleScores((), None, terms, masks, weight, weight, weight, unknown, total, fitted)
        mean, centre, deviation = self.moments
        scale = torch.where(deviation > 0, weight[:, self.order] / deviation, 0)
        silent = torch.stack([unknown[:, group.columns].sum(1) for group in self.groups], 1)
        return EnsembleScores(self.groups, self.sparse, terms, masks, scale, mean, centre, silent, total, fitted)


def _moments(groups: Sequence[Group], sparse: SparseStack | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of models in the order of their columns; see :class:`MeasuredScores`."""
    of_sparse = iter(() if sparse is None else zip(*(m.unbind(1) for m in sparse.moments()), sparse.base, strict=True))
    each = list[tuple[Tensor, ...]]()
    for group in groups:
        for mean, deviation in (part.moments() for part in group.parts):
            each.append((mean, deviation, mean.new_zeros(())))
        each += [next(of_sparse) for _ in range(len(group.names) - len(group.parts))]
    means, deviations, bases = zip(*each, strict=True)
    mean = torch.stack(means, 1)
    return mean, mean - torch.stack(bases), torch.stack(deviations, 1)
