"""The parts of serving: the exact best of rough scores against sorting, and negatives that are a user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metarec.data.dataset import Vocabulary
from metarec.data.histories import Clicks, LazyHistories
from metarec.data.support import SupportMaker
from metarec.serving.ranking import best, largest


class Rough:
    """Scores whose approximation is off by as much as it says."""

    def __init__(self, values: Tensor, off: float, seed: int = 0) -> None:
        self.values, self.off, self.seed = values.double(), off, seed

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, users: slice) -> Rough:
        return Rough(self.values[users], self.off, self.seed)

    def error(self) -> Tensor:
        return torch.full((len(self),), self.off, dtype=torch.float64)

    def approximate(self, start: int, stop: int) -> Tensor:
        noise = torch.rand(self.values.shape, generator=torch.Generator().manual_seed(self.seed)).double()
        return (self.values + self.off * (2 * noise - 1))[:, start:stop].float()

    def exact(self, codes: Tensor) -> Tensor:
        return self.values.gather(1, codes)


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 4),
    items=st.integers(2, 400),
    levels=st.integers(1, 40),
    columns=st.integers(1, 500),
    off=st.sampled_from([0.001, 0.3, 2.0]),
    seed=st.integers(0, 99),
)
def test_the_best_are_exact_with_ties_in_catalogue_order(
    users: int, items: int, levels: int, columns: int, off: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (users, items))
    allowed = rng.random(items) < 0.8
    allowed[:2] = [False, True]
    excluded = rng.integers(2, max(3, items), (users, 2)) % items
    left = [[c for c in range(1, items) if allowed[c] and c not in excluded[u]] for u in range(users)]
    k = int(rng.integers(1, min(map(len, left)) + 1)) if min(map(len, left)) else 0
    if not k:
        return
    pairs = torch.arange(users).repeat_interleave(2), torch.from_numpy(excluded.ravel())
    codes, scores = best(Rough(torch.from_numpy(values), off, seed), k, torch.from_numpy(allowed), pairs, columns)
    for user in range(users):
        expected = sorted(left[user], key=lambda c: (-values[user, c], c))[:k]
        assert codes[user].tolist() == expected
        assert scores[user].tolist() == [values[user, c] for c in expected]


def test_the_largest_of_long_rows() -> None:
    x = torch.randn(3, 70_001)
    for k in (1, 13, 200):
        values, index = largest(x, k)
        assert torch.equal(values, x.topk(k).values) and torch.equal(x.gather(1, index), values)


def test_negatives_are_the_users_own() -> None:
    warm = np.array([False, True, True, False, True, True, True])
    maker = SupportMaker(warm, negatives=4, max_length=50)
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 7, n) for n in (5, 9, 2, 12)]
    support, _ = maker(Clicks.join(rows))
    for number, row in enumerate(rows):
        alone, _ = maker(Clicks.join([row]))
        assert torch.equal(alone.negatives[0], support.negatives[number, : len(row) - 1])
    drawn = support.negatives[support.weight > 0]
    assert set(drawn.unique().tolist()) <= set(np.flatnonzero(warm).tolist())
    assert not (drawn == support.target[support.weight > 0].unsqueeze(-1)).any()
    many = SupportMaker(warm, negatives=3000, max_length=50)(Clicks.join([np.array([1, 2, 3])]))[0].negatives[0]
    for row, allowed in zip(many, ([1, 4, 5, 6], [1, 2, 4, 5, 6]), strict=True):
        share = torch.bincount(row, minlength=7)[allowed] / 3000
        assert torch.allclose(share, torch.full_like(share, 1 / len(allowed)), atol=0.05)


def test_ids_are_encoded_when_they_are_asked_for_and_once_all_were_the_clicks_are_whole() -> None:
    histories, items = [["b", "a"], [], ["c", "a", "c"], ["b"]], Vocabulary("abc")
    lazy = LazyHistories(histories, items)
    got = lazy[np.array([2, 3])]
    assert got.codes.tolist() == [3, 1, 3, 2] and got.offsets.tolist() == [0, 3, 4]
    assert lazy.clicks.codes.tolist() == [0, 0, 3, 1, 3, 2] and lazy.counts.tolist() == [2, 0, 3, 1]
    assert lazy[np.array([1, 0])].codes.tolist() == [2, 1]
    whole = Clicks.of(histories, items)
    assert lazy.clicks.codes.tolist() == whole.codes.tolist() == [2, 1, 3, 1, 3, 2]
    assert lazy.clicks.offsets.tolist() == whole.offsets.tolist() == [0, 2, 2, 5, 6]
    wrong = LazyHistories([["a"], ["x"], ["a", "y"]], items)
    assert wrong[np.array([0])].codes.tolist() == [1]
    with pytest.raises(ValueError, match="user 1: unknown item id 'x'"):
        wrong[np.array([2])]
