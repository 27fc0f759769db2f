"""Nearest items by their features."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec.functional.ranking import top_k

_LOG = logging.getLogger("metarec")
_ROWS = 1 << 10  # in double precision at once: what a cache holds
_LARGE = 2.0**40  # products of larger numbers may be more than float32 holds, those of their inverses less
AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 28}  # scores that are held at once
TILE = 128  # rows that a GPU computes together
BLOCK = 32  # scores of which the largest is found first
FEW = 64  # rows for whom few items come into question
ROUNDING = 1e-4  # of a product, against the lengths of its factors
LONG = 60.0  # seconds, from which on it is said beforehand how long it takes


def nearest_items(features: Tensor, allowed: Tensor, k: int, chunk: int | None = None, first: int = 0) -> Tensor:
    """The ``k`` allowed items with the largest dot product with each item, itself left out.

    Items with the same features are equally near, and equally near ones come in the order of their codes, so that the
    first of k neighbours are the fewer neighbours. An item whose features are all 0, or not finite, is near to none.

    Args:
        features: (I, F), of any unit.
        allowed: (I,) bool, items that may be a neighbour.
        k: how many neighbours.
        chunk: items scored at once, which bounds the memory at chunk x I scores; by default what a cache holds.
        first: the item from which on neighbours are looked for.

    Returns:
        (I - first, k) int64 item codes, nearest first; 0 where there are fewer than k allowed items.

    Raises:
        ValueError: if ``k`` is less than 1.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> nearest_items(x, torch.tensor([False, True, True, True]), k=2)[1:].tolist()
        [[3, 2], [3, 1], [2, 1]]
    """
    if k < 1:
        raise ValueError(f"nearest_items: k must be at least 1, got {k}")
    features, usable, columns = usable_items(features, allowed)
    out = torch.zeros(len(features) - first, k, dtype=torch.int64, device=features.device)
    k = min(k, len(columns))
    if k == 0:
        return out
    if len(out) <= FEW < len(columns):
        columns = _near(features, columns, usable.nonzero().squeeze(-1), k, first)
    among = _Among(features, columns)
    chunk = chunk or rows_at_once(features.device.type, len(columns))
    began, told = time.perf_counter(), False
    for start in range(first, len(features), chunk):
        rows = slice(start, min(start + chunk, len(features)))
        done = slice(start - first, rows.stop - first)
        out[done, :k] = among.nearest(features[rows], rows, k) * usable[rows].unsqueeze(-1)
        taken = time.perf_counter() - began
        if not told and taken > 1:
            told = True
            _tell(taken * len(out) / done.stop, len(out), len(columns))
    return out


def rows_at_once(device: str, columns: int) -> int:
    """How many rows of so many scores are computed at once.

    Example:
        >>> rows_at_once("cpu", 100_000), rows_at_once("cuda", 1_000_000)
        (20, 256)
    """
    rows = max(1, AT_ONCE.get(device, AT_ONCE["cuda"]) // columns)
    return rows if device == "cpu" or rows < TILE else rows // TILE * TILE


def usable_items(features: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features whose products float32 holds, which rows are finite and not all 0, (I,), and the allowed ones' codes."""
    size = torch.linalg.vector_norm(features, torch.inf, 1) if features.shape[1] else features.new_zeros(len(features))
    usable = size.isfinite() & (size > 0)
    largest = float(size[usable].max()) if usable.any() else 1.0
    if not 1 / _LARGE < largest < _LARGE:
        features = (features.double() / largest).to(features.dtype)
    return features, usable, (allowed & usable).nonzero().squeeze(-1)


def _near(features: Tensor, columns: Tensor, usable: Tensor, k: int, first: int) -> Tensor:
    """Those of the columns that may be among the k nearest of few rows: as near as the k-th, but for rounding."""
    rows = usable[usable >= first]
    if not len(rows):
        return columns[:k]
    similar = (features[rows] @ features.T)[:, columns].masked_fill_(rows.unsqueeze(-1) == columns, -torch.inf)
    least = similar.topk(k).values[:, -1:]
    length = torch.linalg.vector_norm(features[rows], dim=1, keepdim=True)
    room = ROUNDING * length * float(torch.linalg.vector_norm(features, dim=1)[usable].max())
    return columns[(similar >= least - room).any(0)]


class _Among:
    """Items among whom the nearest are found.

    Args:
        features: (I, F) of all items.
        columns: (C,) their codes.
    """

    def __init__(self, features: Tensor, columns: Tensor) -> None:
        self.columns, self.width = columns, len(columns)
        others = features[columns]
        equal = first_equal(others)
        self.again = (equal != torch.arange(self.width, device=columns.device)).nonzero().squeeze(-1)
        self.earlier = equal[self.again]
        self.place = torch.full((len(features),), -1, device=columns.device).index_put_(
            (columns,), torch.arange(self.width, device=columns.device)
        )
        self.others = F.pad(others, (0, 0, 0, -self.width % BLOCK)).T
        self.room = features.new_empty(0, 0)

    def nearest(self, features: Tensor, rows: slice, k: int) -> Tensor:
        """Codes (r, k) of the nearest to some rows of features, which are those of the codes ``rows``."""
        if len(self.room) < len(features):
            self.room = features.new_empty(len(features), self.others.shape[1])
        similar = torch.mm(features, self.others, out=self.room[: len(features)])
        similar[:, self.width :] = -torch.inf
        if len(self.again):
            similar[:, self.again] = similar[:, self.earlier]
        own = self.place[rows]
        some = (own >= 0).nonzero().squeeze(-1)
        similar[some, own[some]] = -torch.inf
        value, index = _top_by_blocks(similar, k)
        return torch.where(value.isfinite(), self.columns[index.clamp(max=self.width - 1)], 0)


def _top_by_blocks(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`~metarec.functional.top_k` of rows of whole blocks: the k largest are in the k blocks of the largest."""
    blocks = scores.unflatten(-1, (-1, BLOCK))
    if blocks.shape[-2] <= k:
        return top_k(scores, k)
    some = top_k(blocks.amax(-1), k)[1].sort(-1).values
    inside = blocks.gather(-2, some.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(-2)
    value, index = top_k(inside, k)
    return value, some.gather(-1, index // BLOCK) * BLOCK + index % BLOCK


def _tell(seconds: float, items: int, among: int) -> None:
    """Say how long it takes, where that is long."""
    if seconds > LONG:
        _LOG.warning(
            "the nearest of %d items to each of %d take about %.0f minutes; pip install 'metarec[index]' finds them by "
            "an index (faiss)",
            among,
            items,
            seconds / 60,
        )


def first_equal(rows: Tensor) -> Tensor:
    """For each row, (n,) int64, the first row that is equal to it: itself, mostly.

    A matrix product gives equal rows results that may differ in the last bit, by where they stand in it.

    Args:
        rows: (n, F).

    Example:
        >>> first_equal(torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 2.0]])).tolist()
        [0, 1, 0]
    """
    weight = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).cos()
    mark = torch.cat([(part.double() * weight).sum(1) for part in rows.split(_ROWS)])
    group = mark.unique(return_inverse=True)[1]
    out = torch.arange(len(rows), device=rows.device)
    left = out.clone()
    while len(left):  # once, but for different rows of the same mark
        first = left.new_full((len(rows),), len(rows)).scatter_reduce(0, group[left], left, "amin")[group[left]]
        found = (rows[left] == rows[first]).all(1) | (first == left)
        out[left[found]] = first[found]
        left = left[~found]
    return out
