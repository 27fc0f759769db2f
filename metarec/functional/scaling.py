"""Robust standardisation of item features: neither their unit nor a few outlier rows decide the scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from metarec.functional.appending import roomy
from metarec.functional.neighbours import first_equal

# Features of encoders stand at much the same distance from their mean: in MovieTweetings the farthest text and the
# farthest poster are at 1.2 times the median distance, in planted worlds at 1.8 times. Counts and prices spread over
# orders of magnitude. So a row is an outlier if it is farther than 8 medians and, where distances spread more than
# that, farther than 6 robust deviations of their logarithm (a deviation is 1.4826 times the median deviation).
FAR = 8.0
SPREADS = 6 * 1.4826
FLAT = 2e-7  # a deviation that is this small against the mean is the rounding of single precision
_FEW = 5  # different rows among which none stands out
_SHARE = 10  # at most one row in so many is an outlier
_SAMPLE = 4096  # rows, evenly spaced, whose medians are the middle
_NUMBERS = 1 << 18  # in double precision at once: what a cache holds


@dataclass(frozen=True, eq=False)
class FeatureScale:
    """Mean and scale by which the features of a modality are standardised, those of items added later too.

    Attributes:
        mean: (F,) float64 column means, outliers left out.
        length: root of the mean squared distance from it; where all rows are equal, 1e-6.
        varies: (F,) bool, columns that hold more than the rounding of one number; the others become 0.
        farthest: the largest distance from the mean, in lengths, outliers left out; they are pulled in to it.
        limit: the distance, in lengths, from which on a row is an outlier.
        shortest: the least length of a row as it was given.
        outliers: codes of the rows beyond the limit.
        main: the column whose spread leaves nothing of the others', if there is one.

    Example:
        >>> given = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1e30]])
        >>> scale = FeatureScale.of(given, torch.ones(7) > 0)
        >>> scale.mean.tolist(), scale.outliers.tolist()
        ([3.5], [6])
    """

    mean: Tensor
    length: float
    varies: Tensor
    farthest: float
    limit: float
    shortest: float
    outliers: Tensor
    main: int | None

    @classmethod
    def of(cls, features: Tensor, present: Tensor) -> Self:
        """From features (n, F) and which rows have them (n,)."""
        codes = present.nonzero().squeeze(-1)
        rows = _Rows(features, codes)
        distance, limit = rows.distances()
        inside = distance <= limit
        kept = _Rows(features, codes[inside])
        mean, variance = kept.moments()
        varies = (variance >= (FLAT * mean) ** 2) | (variance == 0)
        variance = variance * varies
        spread = float(variance.sum().sqrt())
        length = spread or 1e-6
        farthest = max((float(_norm(torch.where(varies, part - mean, 0)).max()) for part in kept), default=0.0)
        main = int(variance.argmax()) if int((variance > 0).sum()) > 1 else None
        return cls(
            mean,
            length,
            varies,
            farthest / length,
            max(limit, farthest) / length,
            min((float(_norm(part).min()) for part in rows), default=0.0),
            codes[~inside],
            None if main is None or float(variance[main]) <= (1 - FLAT) * float(variance.sum()) else main,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """All its numbers, to be compared with another's."""
        own = self.length, self.farthest, self.limit, self.shortest, self.main
        return (*own, *(each.cpu().numpy().tobytes() for each in (self.mean, self.varies, self.outliers)))

    @property
    def flat(self) -> bool:
        """Whether all rows are equal, but for rounding, so that they say nothing."""
        return self.farthest == 0

    def __call__(self, features: Tensor, present: Tensor) -> Tensor:
        """Standardised features, (I, F) of the type given: centred, in lengths, 0 where an item has none."""
        out = roomy(len(features), features.shape[1], like=features)
        step = _step(features)
        for start in range(0, len(features), step):
            part = slice(start, start + step)
            out[part] = self._measured(features[part]).masked_fill_(~present[part].unsqueeze(-1), 0)
        far = self._measured(features[self.outliers])
        out[self.outliers] = (far * (self.farthest / _norm(far).unsqueeze(-1)).clamp(max=1)).to(out)
        return out

    def of_added(self, features: Tensor, present: Tensor) -> Tensor:
        """The same of items that were added after the scale was taken, which are never pulled in."""
        return self._measured(features).masked_fill_(~present.unsqueeze(-1), 0).to(features)

    def distance(self, rows: Tensor) -> Tensor:
        """(...) float64, how long rows (..., F) are when they are standardised but not pulled in."""
        return _norm(self._measured(rows))

    def _measured(self, rows: Tensor) -> Tensor:
        return (rows.double() - self.mean).mul_(self.varies.double() / self.length)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a matrix, (F,) each, in double precision a piece at a time."""

    features: Tensor
    codes: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return (self.features[part].double() for part in self.codes.split(_step(self.features)) if len(part))

    def distances(self) -> tuple[Tensor, float]:
        """(n,) distance of each row from the middle, and the limit from which on a row is an outlier.

        Rows that are equal (a stand-in for what is missing, say) count once. If many are beyond the limit, they are no
        outliers but items of another kind, and there is none.
        """
        equal = first_equal(self.features[self.codes])
        once = (equal == torch.arange(len(equal), device=equal.device)).nonzero().squeeze(-1)
        some = self.features[self.codes[once[:: max(1, len(once) // _SAMPLE)]]].double()
        if len(once) < _FEW:
            return self.features.new_zeros(len(self.codes), dtype=torch.float64), torch.inf
        middle = some.median(0).values
        distance = torch.cat([_norm(part - middle) for part in self])
        logs = distance[once].clamp(min=1e-300).log()
        spread = float((logs - logs.median()).abs().median())
        limit = float(distance[once].median()) * math.exp(min(700.0, max(math.log(FAR), SPREADS * spread)))
        return distance, limit if int((distance[once] > limit).sum()) <= max(1, len(once) // _SHARE) else torch.inf

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the columns, (F,) each."""
        zero = self.features.new_zeros(self.features.shape[1], dtype=torch.float64)
        count = max(1, len(self.codes))
        mean = sum((part.sum(0) for part in self), zero) / count
        return mean, sum((part.sub_(mean).square_().sum(0) for part in self), zero) / count


def _step(rows: Tensor) -> int:
    return max(1, _NUMBERS // max(1, rows.shape[1]))


def _norm(rows: Tensor) -> Tensor:
    out: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return out


def standardise_features(features: Tensor, present: Tensor, fitted: int | None = None) -> Tensor:
    """Features with column means 0 and mean squared length 1 over the items that have them; the others stay 0.

    One scale for all columns: the directions that vary most keep their lead. Length 1 whatever the number of columns,
    so that one learning rate of a projection serves wide and narrow features. The unit does not matter, and neither do
    outliers: see :class:`FeatureScale <metarec.functional.scaling.FeatureScale>`.

    Args:
        features: (I, F).
        present: (I,) bool.
        fitted: rows that mean and length are taken from, the first so many; later rows are measured by them. All by
            default.

    Example:
        >>> standardise_features(torch.tensor([[5.0], [1.0], [3.0]]), torch.tensor([False, True, True]))
        tensor([[ 0.],
                [-1.],
                [ 1.]])
    """
    return FeatureScale.of(features[:fitted], present[:fitted])(features, present)
