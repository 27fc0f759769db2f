"""Sums of pairs in sorted parts, against a dictionary."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from metarec.recipes.pair_sums import PairSums


@pytest.mark.parametrize("seed", range(3))
def test_parts_add_up_and_each_is_much_longer_than_the_next(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums, expected, total = PairSums.none(200), Counter[tuple[int, int]](), np.zeros(200)
    for _ in range(150):
        count = int(rng.integers(0, 40))
        first, second, weight = rng.integers(1, 200, count), rng.integers(1, 200, count), rng.random(count)
        before = sums.total.copy()
        after = sums.plus(first, second, weight)
        assert (sums.total == before).all()
        sums = after
        np.add.at(total, first, weight)
        for one, other, own in zip(first.tolist(), second.tolist(), weight.tolist(), strict=True):
            expected[one, other] += own
        sizes = [len(part.key) for part in sums.parts]
        assert all(longer > 4 * shorter for longer, shorter in pairwise(sizes))
    assert len(sums.parts) > 1
    np.testing.assert_allclose(sums.total, total)
    for item in range(200):
        found = Counter[int]()
        for part in sums.parts:
            low, count = part.bounds(np.array([item]))
            own = slice(int(low[0]), int(low[0] + count[0]))
            for pair, worth in zip(part.key[own].tolist(), part.weight[own].tolist(), strict=True):
                found[pair % 2**32] += worth
        wanted = {other: worth for (one, other), worth in expected.items() if one == item}
        assert found.keys() == wanted.keys()
        assert [found[other] for other in wanted] == pytest.approx(list(wanted.values()))
    grown = sums.padded(210)
    assert grown.total[200:].tolist() == [0.0] * 10 and grown.parts is sums.parts


@pytest.mark.parametrize("pairs", [0, 3, 1000])
def test_bounds_of_short_and_long_parts_are_where_a_scan_finds_them(pairs: int) -> None:
    rng = np.random.default_rng(0)
    first, items = rng.integers(5, 50, pairs), np.arange(60).reshape(2, 30)
    for part in PairSums.none(60).plus(first, rng.integers(1, 60, pairs), np.ones(pairs)).parts:
        assert (part.start is None) == (pairs < 50)
        low, count = part.bounds(items)
        own = part.key >> 32
        assert (count == (own == items[..., None]).sum(-1)).all()
        assert (low == (own < items[..., None]).sum(-1)).all()
