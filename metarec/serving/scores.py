"""Fused scores of the catalogue as one matrix product.

The fusion's score is ``sum_m a_m scale_m (s_m . e_mi - mean_m) / deviation_m`` over the learners that know item i,
divided by the sum of their ``a_m``. Mean and deviation of a state's scores over the known items that training knew
follow from the mean and the covariance of their vectors, so a user needs no pass over the catalogue before the one that
ranks it, a piece of the catalogue gets the same scores as the whole, and items that are added change no other's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from metarec.functional.fusion import FLAT, NotFiniteError
from metarec.serving.ranking import LOWEST


@dataclass(frozen=True, eq=False)
class Tables:
    """The item vectors of M learners side by side, and their moments over the items that each knows.

    Attributes:
        rows: (I, M * D + M) vectors, zero where a learner does not know the item, then 1 for each learner that does.
        columns: the same transposed, which a product of one query reads twice as fast.
        known: (I, M) 1 where a learner knows the item.
        names: of the learners.
        fitted: rows that moments are taken over, the first so many: the items that training knew.
        mean: (M, D) float64.
        covariance: (M, D, D) float64.
        count: (M,) items that each learner knows and training knew.
        alike: whether all learners know the same items.
        longest: the largest length of a row.
        shift: (I,) what is added to an item's fused score, whoever the user is; None for nothing.
    """

    rows: Tensor
    columns: Tensor
    known: Tensor
    names: Sequence[str]
    fitted: int
    mean: Tensor
    covariance: Tensor
    count: Tensor
    alike: bool
    longest: float
    shift: Tensor | None = None

    @classmethod
    def of(cls, tables: Sequence[Tensor], known: Sequence[Tensor], names: Sequence[str], fitted: int) -> Tables:
        """From each learner's table (I, D), items it knows (I,) and name, and how many rows training knew."""
        flags = torch.stack(list(known), 1)
        rows = torch.cat(
            [*(torch.where(k[:, None], t, 0) for t, k in zip(tables, known, strict=True)), flags.to(tables[0])], 1
        )
        means, covariances = [], []
        for table, own in zip(tables, known, strict=True):
            vectors = table[:fitted][own[:fitted]].double()
            mean = vectors.mean(0) if len(vectors) else table.new_zeros(table.shape[1]).double()
            centred = vectors - mean
            means.append(mean)
            covariances.append(centred.T @ centred / max(1, len(vectors)))
        return cls(
            rows,
            rows.T.contiguous(),
            flags.to(rows.dtype),
            names,
            fitted,
            torch.stack(means),
            torch.stack(covariances),
            flags[:fitted].sum(0),
            bool((flags == flags[:, :1]).all()),
            float(rows.norm(dim=1).max()),
        )


@dataclass(frozen=True, eq=False)
class FusedScores:
    """Scores of B users against the catalogue; see the module.

    Attributes:
        tables: the items.
        query: (B, M * D + M) what rows are multiplied with.
        share: (B, M) each learner's weight, 0 where it is not active.
        rows: (B, M, U) item rows that a user has changed, -1 where there are fewer.
        added: (B, M, U) what that adds to the products.
    """

    tables: Tables
    query: Tensor
    share: Tensor
    rows: Tensor
    added: Tensor

    @classmethod
    def of(
        cls, tables: Tables, state: Tensor, rows: Tensor, corrections: Tensor, share: Tensor, scale: Tensor
    ) -> FusedScores:
        """From where users stand, the weights of their learners (B, M) and the learners' scales (M,).

        Raises:
            ValueError: if a score of a user is not finite.
        """
        exact = state.double()
        centre = (exact * tables.mean).sum(-1)
        variance = torch.einsum("bmd,mde,bme->bm", exact, tables.covariance, exact)
        if rows.shape[2]:
            centre, variance, corrections = _moved(tables, state, rows, corrections, centre, variance)
        flat = variance <= (FLAT * centre) ** 2
        factor = share * scale * torch.where(flat, 0, torch.where(flat, 1, variance).rsqrt())
        query = torch.cat([(exact * factor.unsqueeze(-1)).flatten(1), -factor * centre], 1)
        added = corrections * factor.unsqueeze(-1)
        out = cls(tables, query.to(state.dtype), share, rows, added.to(state.dtype))
        if not bool((out.query.sum() + out.added.sum()).isfinite()):
            out._tell(state)
        return out

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.tables, self.query[users], self.share[users], self.rows[users], self.added[users])

    def _tell(self, state: Tensor) -> None:
        """Raise for the first user of whom something is not finite, naming what."""
        users, learners = self.share.shape
        parts = self.query[:, :-learners].reshape(users, learners, -1), self.query[:, -learners:, None], self.added
        scores = torch.cat(parts, 2)
        own, shares = list(self.tables.names), self.share.unsqueeze(2)
        for what, values in (("state", state), ("weight in the fusion", shares), ("score in the fusion", scores)):
            broken = ~values.isfinite().all(2)
            if broken.any():
                user, learner = broken.nonzero()[0].tolist()
                whose = f"learners {own}" if broken[user].all() and len(own) > 1 else f"learner {own[learner]!r}"
                raise NotFiniteError(
                    f"recommend: user {user}: the {what} of {whose} is not finite: the steps or the training have "
                    "diverged; train or adapt with a lower learning rate"
                )

    def error(self) -> Tensor:
        """(B,) how far rounding may take ``approximate`` from ``exact``: a bound on a product of float32 rows."""
        width, step = self.query.shape[1], torch.finfo(self.query.dtype).eps
        bound: Tensor = self.query.double().norm(dim=1) * (self.tables.longest * width * step)
        bound = bound + self.added.double().abs().sum((1, 2)) * (4 * step)
        if not self.tables.alike:
            least = self.share.masked_fill(self.share <= 0, torch.inf).amin(1)
            bound = bound / least.double().clamp(min=1e-30)
        if self.tables.shift is not None:
            bound = bound + 4 * step * float(self.tables.shift.abs().max())
        return bound

    def approximate(self, start: int, stop: int) -> Tensor:
        """(B, stop - start) of a piece of the catalogue."""
        out = self.query @ self.tables.columns[:, start:stop]
        if self.rows.shape[2]:
            flat = self.rows.flatten(1)
            here = (flat >= max(start, 1)) & (flat < stop)
            out.scatter_add_(1, (flat - start) * here, self.added.flatten(1) * here)
        if not self.tables.alike:
            total = self.share @ self.tables.known[start:stop].T
            out = torch.where(total > 0, out / total, LOWEST)
        return out if self.tables.shift is None else out.add_(self.tables.shift[start:stop])

    def exact(self, codes: Tensor) -> Tensor:
        """(B, K) float64 of item codes (B, K)."""
        out = (self.tables.rows[codes].double() * self.query.double().unsqueeze(1)).sum(-1)
        if self.rows.shape[2]:
            own = codes.unsqueeze(-1) == self.rows.flatten(1).unsqueeze(1)
            out = out + (own * self.added.flatten(1).double().unsqueeze(1)).sum(-1)
        if not self.tables.alike:
            total = (self.tables.known[codes] * self.share.unsqueeze(1)).double().sum(-1)
            out = torch.where(total > 0, out / total, LOWEST)
        return out if self.tables.shift is None else out + self.tables.shift[codes].double()


def _moved(
    tables: Tables, state: Tensor, rows: Tensor, corrections: Tensor, centre: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the scores, (B, M) each, after some rows were corrected, and the corrections that count."""
    state, corrections = state.double(), corrections.double()
    learners, dim = tables.mean.shape
    at = rows.clamp(min=0)
    own = torch.arange(learners, device=rows.device).unsqueeze(-1)
    corrections = corrections * (rows > 0) * tables.known[at, own]
    vectors = tables.rows[:, : learners * dim].view(-1, learners, dim)[at, own]
    before = (vectors * state.unsqueeze(2)).sum(-1) - centre.unsqueeze(-1)
    count, measured = tables.count.clamp(min=1), corrections * (rows < tables.fitted)
    shift = measured.sum(-1) / count
    grown = (measured * (2 * before + measured)).sum(-1) / count
    return centre + shift, variance + grown - shift**2, corrections


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
