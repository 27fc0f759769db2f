"""Scores of the catalogue by several learners as one matrix product.

A learner's raw score is ``s_m . e_mi`` of its state and the item's vector. Mean and deviation of a state's scores over
the known items that training knew follow from the mean and the covariance of their vectors, so a user needs no pass
over the catalogue before the one that ranks it, a piece of the catalogue gets the same scores as the whole, and items
that are added change no other's score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from metarec.functional.fusion import FLAT, NotFiniteError
from metarec.nn.item_tables import ItemTables
from metarec.scoring import DenseScores, UserState

AT_ONCE = 1 << 22  # scores whose moments are computed at once
Spread = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class LinearScores:
    """Dot-product scores of N users, of several learners fused into one matrix product; see the module.

    Attributes:
        tables: the items.
        query: (N, M * D + M) what rows are multiplied with.
        rows: (N, M, U) item rows that a user has changed, 0 where there are fewer.
        added: (N, M, U) what that adds to the products.
        share: (N, M) each learner's weight, if scores are divided by the weights of the learners that know the item.
        offset: (N,) what is added to all scores.
        spread: (N, 2) float64 mean and deviation of the scores, where they follow from the query.
    """

    tables: ItemTables
    query: Tensor
    rows: Tensor
    added: Tensor
    share: Tensor | None = None
    offset: Tensor | None = None
    spread: Tensor | None = None

    @classmethod
    def raw(cls, tables: ItemTables, state: UserState) -> LinearScores:
        """The scores of one learner as they are, M = 1.

        Raises:
            ValueError: if a score of a user is not finite.

        Example:
            >>> tables = ItemTables.of([torch.eye(3)], [torch.arange(3) > 0], ["id"])
            >>> state = UserState({"state": torch.tensor([[[5.0, 1.0, 3.0]]]), "active": torch.ones(1, 1) > 0})
            >>> scores = LinearScores.raw(tables, state)
            >>> scores.approximate(1, 3).tolist(), [moment.tolist() for moment in scores.moments()]
            ([[1.0, 3.0]], [[2.0], [1.0]])
        """
        centre, variance, corrections, rows = measured_states(tables, state)
        own = state.tensors["state"].flatten(1)
        deviation = torch.where(variance <= (FLAT * centre) ** 2, 0, variance.clamp(min=0).sqrt())
        out = cls(
            tables,
            torch.cat([own, own.new_zeros(len(own), 1)], 1),
            rows,
            corrections.to(own.dtype),
            spread=torch.cat([centre, deviation], 1),
        )
        return out._checked(state, own.new_ones(len(own), 1))

    @classmethod
    def fused(cls, tables: ItemTables, state: UserState, share: Tensor, scale: Tensor) -> LinearScores:
        """The mean of standardised scores, each learner by its weight among those that know the item.

        ``sum_m a_m scale_m (s_m . e_mi - mean_m) / deviation_m`` over the learners that know item i, divided by the sum
        of their ``a_m``.

        Args:
            tables: the items.
            state: of M learners.
            share: (N, M) the weights a, 0 where a learner is not active.
            scale: (M,) of each learner's standardised scores.

        Raises:
            ValueError: if a score of a user is not finite.
        """
        return cls._standardised(tables, state, share, share * scale, None, measured_states(tables, state))

    @classmethod
    def summed(
        cls, tables: ItemTables, state: UserState, weight: Tensor, unknown: Tensor, spread: Spread | None = None
    ) -> LinearScores:
        """The weighted sum of standardised scores, and of what it is worth that a learner does not know an item.

        ``sum_m w_m z_mi`` over the learners that know item i, and ``sum_m b_m`` over the others.

        Args:
            tables: the items.
            state: of M learners.
            weight: (N, M) the weights w, of each user.
            unknown: (N, M) the worths b.
            spread: what :func:`measured_states` says of the states, if that was asked before.

        Raises:
            ValueError: if a score of a user is not finite.
        """
        return cls._standardised(tables, state, None, weight, unknown, spread or measured_states(tables, state))

    @classmethod
    def _standardised(
        cls,
        tables: ItemTables,
        state: UserState,
        share: Tensor | None,
        weight: Tensor,
        unknown: Tensor | None,
        spread: Spread,
    ) -> LinearScores:
        own = state.tensors["state"]
        centre, variance, corrections, rows = spread
        flat = variance <= (FLAT * centre) ** 2
        factor = weight * torch.where(flat, 0, torch.where(flat, 1, variance).rsqrt())
        flags = -factor * centre
        offset = None
        if unknown is not None:
            flags, offset = flags - unknown, unknown.double().sum(1)
        query = torch.cat([(own.double() * factor.unsqueeze(-1)).flatten(1), flags], 1)
        added = corrections * factor.unsqueeze(-1)
        out = cls(tables, query.to(own.dtype), rows, added.to(own.dtype), share, offset)
        return out._checked(state, weight if share is None else share)

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        parts = (self.query, self.rows, self.added, self.share, self.offset, self.spread)
        return type(self)(self.tables, *(None if part is None else part[users] for part in parts))  # type: ignore[arg-type]

    def _checked(self, state: UserState, weight: Tensor) -> Self:
        """Itself, if it is finite; else raises for the first user of whom something is not, naming what."""
        if bool((self.query.sum() + self.added.sum()).isfinite()):
            return self
        users, learners = weight.shape
        parts = self.query[:, :-learners].reshape(users, learners, -1), self.query[:, -learners:, None], self.added
        values, own = state.tensors["state"], list(self.tables.names)
        shares, scores = ("weight in the fusion", weight.unsqueeze(2)), ("score in the fusion", torch.cat(parts, 2))
        for what, numbers in (("state", values), shares, scores):
            broken = ~numbers.isfinite().all(2)
            if broken.any():
                user, learner = broken.nonzero()[0].tolist()
                whose = f"learners {own}" if broken[user].all() and len(own) > 1 else f"learner {own[learner]!r}"
                raise NotFiniteError(
                    f"user {user}: the {what} of {whose} is not finite: the steps or the training have "
                    "diverged; train or adapt with a lower learning rate"
                )
        return self

    def error(self) -> Tensor:
        """(N,) how far rounding may take ``approximate`` from ``exact``: a bound on a product of float32 rows."""
        width, step = self.query.shape[1], torch.finfo(self.query.dtype).eps
        bound: Tensor = self.query.double().norm(dim=1) * (self.tables.longest * width * step)
        if self.rows.shape[2]:
            bound = bound + self.added.double().abs().sum((1, 2)) * (4 * step)
        if self.share is not None and not self.tables.alike:
            least = self.share.masked_fill(self.share <= 0, torch.inf).amin(1)
            bound = bound / least.double().clamp(min=1e-30)
        if self.offset is not None:
            bound = bound + 4 * step * self.offset.abs()
        return bound

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue."""
        out = self._products(start, stop)
        if self.share is not None and not self.tables.alike:
            total = self.share @ self.tables.known[start:stop].T
            out = torch.where(total > 0, out / total, self._lowest)
        if self.offset is not None:
            out.add_(self.offset.to(out.dtype).unsqueeze(1))
        return out

    def _products(self, start: int, stop: int) -> Tensor:
        """The weighted sums over the learners that know each item, of a piece of the catalogue."""
        out = self.query @ self.tables.columns[:, start:stop]
        if self.rows.shape[2]:
            flat = self.rows.flatten(1)
            here = (flat >= max(start, 1)) & (flat < stop)
            out.scatter_add_(1, (flat - start) * here, self.added.flatten(1) * here)
        return out

    @cached_property
    def _lowest(self) -> Tensor:
        """(N, 1) each user's lowest score, which items get that no learner with a weight knows; 0 if there is none."""
        out, known = self.query.new_zeros(len(self), 1), self.tables.known
        if self.share is None or bool((self.share > 0).all()):
            return out  # and every item that is known at all has a score
        reached = (self.share > 0).unique(dim=0).to(known) @ known.T > 0
        if bool((reached | ~known.any(1)).all()):
            return out
        total = self.share @ known.T
        lowest = torch.where(total > 0, self._products(0, len(known)) / total, torch.inf).amin(1, keepdim=True)
        return torch.where(lowest.isfinite(), lowest, out)

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        out = (self.tables.rows[codes] * self.query.double().unsqueeze(1)).sum(-1)
        if self.rows.shape[2]:
            own = codes.unsqueeze(-1) == self.rows.flatten(1).unsqueeze(1)
            out = out + (own * self.added.flatten(1).double().unsqueeze(1)).sum(-1)
        if self.share is not None and not self.tables.alike:
            total = (self.tables.known[codes] * self.share.unsqueeze(1)).double().sum(-1)
            out = torch.where(total > 0, out / total, self._lowest.double())
        if self.offset is not None:
            out = out + self.offset.unsqueeze(1)
        return out

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (N,) float64, over the items that any learner knows and training knew."""
        if self.spread is not None:
            mean, deviation = self.spread.unbind(1)
            return mean, deviation
        fitted, parts = self.tables.fitted, []
        known = self.tables.known[:fitted].any(1)
        for first in range(0, len(self), size := max(1, AT_ONCE // fitted)):
            parts.append(DenseScores(self[first : first + size].approximate(0, fitted), known).moments())
        mean, deviation = (torch.cat(part) for part in zip(*parts, strict=True))
        return mean, deviation


def measured_states(tables: ItemTables, state: UserState) -> Spread:
    """Mean and variance of the learners' scores (N, M), the corrections that count and the rows they are of."""
    own = state.tensors["state"]
    exact = own.double()
    centre = (exact * tables.mean).sum(-1)
    variance = (torch.bmm(exact.transpose(0, 1), tables.covariance).transpose(0, 1) * exact).sum(-1)
    rows, corrections = state.tensors.get("rows"), state.tensors.get("corrections")
    if rows is None or corrections is None:
        none = own[..., :0]
        return centre, variance, none, none.long()
    if rows.shape[2]:
        centre, variance, corrections = _moved(tables, own, rows, corrections, centre, variance)
    return centre, variance, corrections, rows


def _moved(
    tables: ItemTables, state: Tensor, rows: Tensor, corrections: Tensor, centre: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the scores, (N, M) each, after some rows were corrected, and the corrections that count."""
    state, corrections = state.double(), corrections.double()
    learners, dim = tables.mean.shape
    at = rows.clamp(min=0)
    own = torch.arange(learners, device=rows.device).unsqueeze(-1)
    corrections = corrections * (rows > 0) * tables.known[at, own]
    vectors = tables.rows[:, : learners * dim].view(-1, learners, dim)[at, own]
    before = (vectors * state.unsqueeze(2)).sum(-1) - centre.unsqueeze(-1)
    count, measured = tables.count.clamp(min=1), corrections * (rows < tables.fitted)
    shift = measured.sum(-1) / count
    spread = (measured * (2 * before + measured)).sum(-1) / count
    return centre + shift, variance + spread - shift**2, corrections
