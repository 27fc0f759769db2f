"""Scores that are the same for most items, made a piece of the catalogue at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec.data.dataset import Ints
from metarec.functional.fusion import FLAT
from metarec.scoring import DenseScores

CLOSE = 1e-6  # a variance so small against the square of the mean is computed with more care
_INFO = torch.finfo(torch.float32)


def rounding(largest: Tensor) -> Tensor:
    """How far float32 may be from float64, for numbers up to so large."""
    return largest.double() * (_INFO.eps / 2) + _INFO.tiny


@dataclass(frozen=True, eq=False)
class SparseScores:
    """Scores of N users that are one number for all items but a few.

    Attributes:
        start: (N + 1,) int64, where each user's entries begin; the last is their count.
        item: (n,) int64 item codes, ascending for each user.
        value: (n,) float64 their scores.
        base: of all other items.
        known: (I,) bool, items that the moments are taken over.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> scores = SparseScores(torch.tensor([0, 1]), torch.tensor([2]), one, 0.0, torch.arange(3) > 0)
        >>> scores.approximate(1, 3).tolist(), scores.exact(torch.tensor([[2, 1]])).tolist()
        ([[0.0, 1.0]], [[1.0, 0.0]])
        >>> [moment.tolist() for moment in scores.moments()]
        [[0.5], [0.5]]
    """

    start: Tensor
    item: Tensor
    value: Tensor
    base: float
    known: Tensor
    log_odds: ClassVar[bool] = False  # of a scale of their own: mean and deviation count as 0 and 1

    @classmethod
    def of(
        cls, start: Ints, item: Ints, value: NDArray[np.float64], base: float, known: Tensor, device: torch.device
    ) -> Self:
        """Scores from arrays, on a device."""
        start_, item_, value_ = (torch.from_numpy(column).to(device) for column in (start, item, value))
        return cls(start_, item_, value_, base, known.to(device))

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users, one after the other."""
        first, stop, _ = users.indices(len(self))
        start = self.start[first : max(first, stop) + 1]
        part = slice(int(start[0]), int(start[-1]))
        return type(self)(start - start[0], self.item[part], self.value[part], self.base, self.known)

    @cached_property
    def _row(self) -> Tensor:
        """(n,) the user of each entry."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.item.device), self.start.diff())

    @cached_property
    def above(self) -> Tensor:
        """(n,) what each entry is above all other items."""
        return self.value - self.base

    def error(self) -> Tensor:
        """(N,) float64, by rounding to float32."""
        largest = self.value.abs().max() if len(self.value) else self.value.new_zeros(())
        return rounding(largest.clamp(min=abs(self.base))).expand(len(self))

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) float32 of a piece of the catalogue."""
        out = torch.full((len(self), stop - start), self.base, device=self.value.device)
        self.write_to(out, start)
        return out

    def write_to(self, out: Tensor, start: int) -> None:
        """Put the entries, and nothing else, into (N, C) float32 of a piece of the catalogue."""
        place, value, width = self.item - start, self.value, out.shape[1]
        here = (place >= 0) & (place < width) if width < len(self.known) else None
        if len(self) > 1:
            place += self._row * width
        if here is not None:
            place, value = place[here], value[here]
        out.view(-1).scatter_(0, place, value.float())

    def exact(self, codes: Tensor, *, instead: Tensor | float | None = None) -> Tensor:
        """(N, K) float64 of item codes (N, K); ``instead`` of what is no entry, the base by default."""
        others = self.base if instead is None else instead
        if not len(self.item):
            return self.value.new_zeros(codes.shape) + others
        own = self._row * len(self.known) + self.item
        wanted = torch.arange(len(self), device=codes.device).unsqueeze(1) * len(self.known) + codes
        place = torch.searchsorted(own, wanted).clamp(max=len(own) - 1)
        return torch.where(own[place] == wanted, self.value[place], others)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the known items."""
        mean, deviation = SparseStack.of([self]).moments()
        return mean.squeeze(1), deviation.squeeze(1)


@dataclass(frozen=True, eq=False)
class SparseStack:
    """Sparse scores of N users by S models with the same known items, to be weighted and added up.

    Attributes:
        start: (S * N + 1,) int64, where the entries of each model and user begin, all users of the first model first.
        item: (n,) int64 item codes, ascending for each model and user.
        above: (n,) float64, what they are above all other items.
        base: (S,) float64, the scores of those.
        known: (I,) bool each, items that a model knows and its moments are taken over.
        log_odds: of each model, whether its mean and deviation count as 0 and 1.

    Example:
        >>> one, known = torch.ones(1, dtype=torch.float64), torch.arange(3) > 0
        >>> each = [SparseScores(torch.tensor([0, 1]), torch.tensor([code]), one, 0.0, known) for code in (1, 2)]
        >>> SparseStack.of(each).exact(torch.tensor([[1, 2]]), torch.tensor([[2.0, 3.0]]))
        tensor([[2., 3.]], dtype=torch.float64)
    """

    start: Tensor
    item: Tensor
    above: Tensor
    base: Tensor
    known: tuple[Tensor, ...]
    log_odds: tuple[bool, ...]

    @classmethod
    def of(cls, scores: Sequence[SparseScores]) -> Self:
        """The scores of each model, for the same users."""
        device = scores[0].item.device
        base = torch.tensor([own.base for own in scores], dtype=torch.float64, device=device)
        item = torch.cat([own.item for own in scores])
        above = torch.cat([own.above * own.known.index_select(0, own.item) for own in scores])
        start = F.pad(torch.cat([own.start.diff() for own in scores]).cumsum(0), (1, 0))
        return cls(start, item, above, base, *zip(*((own.known, own.log_odds) for own in scores), strict=True))

    def __len__(self) -> int:
        return (len(self.start) - 1) // len(self.base)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users, one after the other."""
        shape = len(self.base), len(self)
        begin, end = (own.view(shape)[:, users] for own in (self.start[:-1], self.start[1:]))
        own = self._row.remainder(shape[1])
        first, stop, _ = users.indices(shape[1])
        here = (own >= first) & (own < stop)
        start = F.pad((end - begin).flatten().cumsum(0), (1, 0))
        return replace(self, start=start, item=self.item[here], above=self.above[here])

    @cached_property
    def _row(self) -> Tensor:
        """(n,) the model and user of each entry."""
        rows = torch.arange(len(self.start) - 1, device=self.item.device)
        return torch.repeat_interleave(rows, self.start.diff(), output_size=len(self.item))

    def error(self) -> Tensor:
        """() float64, of one score of one model, by rounding to float32."""
        largest = self.above.abs().max() if len(self.item) else self.base.new_zeros(())
        return 2 * rounding(largest)

    def add_to(self, out: Tensor, start: int, scale: Tensor) -> None:
        """Add the weighted sums of what the entries are above the others to (N, C) of a piece of the catalogue.

        Args:
            out: float32, changed in place.
            start: where the piece begins.
            scale: (N, S) the weights.
        """
        width, models = out.shape[1], len(self.base)
        place, value = self.item - start, self.above * scale.T.flatten()[self._row]
        here = (place >= 0) & (place < width) if width < len(self.known[0]) else slice(None)
        if len(out) > 1:
            place += torch.arange(0, out.numel(), width, device=out.device).repeat(models)[self._row]
        out.view(-1).index_add_(0, place[here], value[here].float())

    def exact(self, codes: Tensor, scale: Tensor) -> Tensor:
        """(N, K) float64, those sums for item codes (N, K)."""
        if not len(self.item):
            return self.above.new_zeros(codes.shape)
        items, (users, models) = len(self.known[0]), scale.shape
        own = self._row * items + self.item
        wanted = torch.arange(0, models * users * items, items, device=codes.device).view(models, users, 1) + codes
        place = torch.searchsorted(own, wanted).clamp(max=len(own) - 1)
        found = torch.where(own[place] == wanted, self.above[place], 0)
        return (found * scale.T.unsqueeze(2)).sum(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the known items, (N, S); what the others share enters in closed form."""
        base = self.base.unsqueeze(1)
        count = torch.stack(self.known).sum(1, keepdim=True).clamp(min=1)
        shift, square = (
            torch.segment_reduce(own, "sum", offsets=self.start, initial=0.0).view(len(base), -1) / count
            for own in (self.above, self.above.square())
        )
        mean, variance = base + shift, square - shift.square()
        deviation = variance.clamp(min=0).sqrt()
        close = (variance <= CLOSE * shift.square()) | (deviation <= FLAT * mean.abs())  # flat, or lost to rounding
        for model, user in close.nonzero().tolist():
            own = slice(*self.start[model * len(self) + user :][:2].tolist())
            known = self.known[model]
            whole = base[model].repeat(1, len(known))
            whole[0, self.item[own]] += self.above[own]
            mean[model, user], deviation[model, user] = torch.cat(DenseScores(whole, known).moments())
        for model in (model for model, of_odds in enumerate(self.log_odds) if of_odds):
            mean[model], deviation[model] = 0, 1
        return mean.T, deviation.T
