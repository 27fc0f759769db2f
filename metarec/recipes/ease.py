"""EASE: a linear item-to-item model with a closed form, which scores a new user from the history alone.

Source: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. There are no user parameters, so a cold
user needs no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.data.dataset import Dataset, Ints
from metarec.files import expect_tensor
from metarec.model import Saved, register
from metarec.recipes.click_log import check_codes
from metarec.recipes.counting import Counts, all_read, numbers
from metarec.scoring import Scores, UserState, moments_of
from metarec.types import Examples

PAIRS = 1 << 24  # counted at once


class SomeItems(Counts):
    """A base for models of the most clicked items, ``codes``, that read the whole history."""

    codes: Tensor
    _place: Tensor

    def item_mask(self) -> Tensor:
        """(I,) bool, the items that it knows."""
        return self._place >= 0

    def read(self, query: Examples) -> dict[str, Tensor]:
        """``history``, (N, L) int32; active is who clicked an item that it knows."""
        history = all_read(query)
        return {"active": (self._place.to(history.device)[history.long()] >= 0).any(1), "history": history}

    def _grow(self, items: int) -> None:
        self._place = placed(self.codes, items)


@register
class EASE(SomeItems):
    """``scores = x B`` with ``B = I - P / diag(P)``, ``P = (X^T X + penalty I)^-1``, over items seen upstream.

    Args:
        data: the upstream side of a split.
        penalty: of the ridge regression; more for smaller data.
        items: so many at most, the most clicked; of the others it knows nothing.
        device: where the matrix, items by items, is inverted and kept.

    Raises:
        ValueError: if the penalty is not above 0, or ``items`` below 1.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.evaluation import evaluate
        >>> up, down = split_by_time(planted(users=60, items=40, adaptation=0.0), at=PLANTED_SPLIT)
        >>> evaluate(EASE(up), down, k=(5,)).metrics["recall@5"].mean > 5 / 40
        True
    """

    def __init__(
        self, data: Dataset, *, penalty: float = 200.0, items: int = 10_000, device: torch.device | str = "cpu"
    ) -> None:
        if not penalty > 0:
            raise ValueError(f"EASE: penalty must be above 0, got {penalty}")
        self.attach(data)
        codes = most_clicked(data, items)
        gram = cooccurrences(data, codes, device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), device=device)))
        diagonal = inverse.diagonal().clone()
        self._begin(-inverse / diagonal, diagonal, torch.from_numpy(codes).to(device), data.catalog.size)
        self.fitted_until = float(data.time.max())

    def _begin(self, weight: Tensor, diagonal: Tensor, codes: Tensor, items: int) -> None:
        """Note the weights; those below the diagonal follow from those above it, as ``P`` is symmetric."""
        upper = weight.triu(1)
        self.weight = upper + (upper * diagonal / diagonal.unsqueeze(1)).T
        self.diagonal, self.codes = diagonal, codes
        self._place = placed(codes, items)

    def scores(self, state: UserState) -> Scores:
        """The sums of the weights' rows of the clicked items."""
        history = state.tensors["history"]
        weight, codes, place = (own.to(history.device) for own in (self.weight, self.codes, self._place))
        own, real, _ = distinct(place[history.long()])
        summed = F.embedding_bag(own[real], weight, real.sum(1).cumsum(0) - real.sum(1), mode="sum")
        return PlacedScores(summed, codes, place)

    def _told(self) -> Saved:
        """The weights above the diagonal of ``B`` and the diagonal of ``P``, from which the others follow."""
        upper = self.weight[torch.ones_like(self.weight, dtype=torch.bool).triu(1)]
        tensors = {"codes": self.codes.int(), "upper": upper, "diagonal": self.diagonal}
        return Saved({}, tensors)

    def _take(self, saved: Saved) -> None:
        codes = expect_tensor(saved.tensors, "codes", torch.int32, 1).long()
        check_ascending("codes", codes.numpy(), len(self.warm))
        count = len(codes)
        upper = torch.from_numpy(numbers(saved.tensors, "upper", torch.float32, count * (count - 1) // 2))
        diagonal = torch.from_numpy(numbers(saved.tensors, "diagonal", torch.float32, count))
        if (diagonal <= 0).any():
            raise ValueError("diagonal must be above 0")
        weight = torch.zeros(count, count)
        weight[torch.ones(count, count, dtype=torch.bool).triu(1)] = upper
        self._begin(weight, diagonal, codes, len(self.warm))


@dataclass(frozen=True, eq=False)
class PlacedScores:
    """Scores of N users for some items, and 0 for all others.

    Attributes:
        values: (N, n).
        codes: (n,) the items' codes, ascending.
        place: (I,) where each item is among them, -1 for the others.
    """

    values: Tensor
    codes: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, users: slice) -> Self:
        """The scores of some users."""
        return type(self)(self.values[users], self.codes, self.place)

    def error(self) -> Tensor:
        """(N,) zero: nothing is computed again."""
        return self.values.new_zeros(len(self), dtype=torch.float64)

    def approximate(self, start: int, stop: int) -> Tensor:
        """(N, stop - start) of a piece of the catalogue."""
        out = self.values.new_zeros(len(self), stop - start)
        if stop - start == len(self.place):
            return out.index_copy_(1, self.codes, self.values)
        first, last = torch.searchsorted(self.codes, torch.tensor([start, stop], device=self.codes.device)).tolist()
        return out.index_copy_(1, self.codes[first:last] - start, self.values[:, first:last])

    def exact(self, codes: Tensor) -> Tensor:
        """(N, K) float64 of item codes (N, K)."""
        place = self.place[codes]
        return torch.where(place >= 0, self.values.gather(1, place.clamp(min=0)), 0).double()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the items that are known."""
        return moments_of(self.values)


def placed(codes: Tensor, items: int) -> Tensor:
    """(I,) where each item is among codes (n,), -1 for the others."""
    place = torch.full((items,), -1, dtype=torch.int64, device=codes.device)
    place[codes] = torch.arange(len(codes), device=codes.device)
    return place


def distinct(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, L) in ascending order; which are the last of their value, and not negative; and where each stood."""
    place, order = place.sort(dim=1, stable=True)
    last = place >= 0
    last[:, :-1] &= place[:, 1:] != place[:, :-1]
    return place, last, order


def check_ascending(name: str, codes: Ints, items: int) -> None:
    """See that codes are those of items, each once, in ascending order.

    Raises:
        ValueError: if they are not.
    """
    check_codes(name, codes, items)
    if (np.diff(codes) <= 0).any():
        raise ValueError(f"{name} must ascend")


def most_clicked(data: Dataset, items: int) -> Ints:
    """Codes of the warm items that were clicked most, so many at most, in ascending order.

    Raises:
        ValueError: if none is wanted.
    """
    if items < 1:
        raise ValueError(f"items must be at least 1, got {items}")
    warm = np.flatnonzero(data.warm)
    count = np.bincount(data.item, minlength=data.catalog.size)[warm]
    codes: Ints = np.sort(warm[np.argsort(-count, kind="stable")[:items]])
    return codes


def cooccurrences(data: Dataset, codes: Ints, device: torch.device | str = "cpu") -> Tensor:
    """(n, n) how many users clicked both of n items; the diagonal has how many clicked one."""
    place = np.full(data.catalog.size, -1)
    place[codes] = np.arange(len(codes))
    kept = place[data.item] >= 0
    both = np.unique(data.user[kept].astype(np.int64) * len(codes) + place[data.item[kept]])
    user, item = np.divmod(both, len(codes))
    count = np.unique(user, return_counts=True)[1]
    first, done = (np.append(0, np.cumsum(column)) for column in (count, count**2))  # items and pairs before each user
    out = torch.zeros(len(codes) ** 2, device=device)
    start = 0
    while start < len(count):
        stop = max(start + 1, int(np.searchsorted(done, done[start] + PAIRS, side="right")) - 1)
        own = _pairs(item[first[start] : first[stop]], count[start:stop], len(codes))
        key = torch.from_numpy(own).to(device)
        out.index_add_(0, key, torch.ones(len(key), device=device))
        start = stop
    return out.view(len(codes), len(codes))


def _pairs(item: Ints, count: Ints, size: int) -> Ints:
    """``a * size + b`` of all pairs of items of one user, of users with so many items each, one after the other."""
    each = np.repeat(count, count)  # partners of every item
    first = np.repeat(np.cumsum(count) - count, count)  # where those of its user begin
    place = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each) + np.repeat(first, each)
    pairs: Ints = np.repeat(item, each) * size + item[place]
    return pairs
