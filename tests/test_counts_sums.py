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
        sizes = [len(key) for key, _ in sums.parts]
        assert all(longer > 4 * shorter for longer, shorter in pairwise(sizes))
    assert len(sums.parts) > 1
    np.testing.assert_allclose(sums.total, total)
    for item in range(200):
        found = Counter[int]()
        for (key, weight), (low, count) in zip(sums.parts, sums.bounds(np.array([item])), strict=True):
            own = slice(int(low[0]), int(low[0] + count[0]))
            for pair, worth in zip(key[own].tolist(), weight[own].tolist(), strict=True):
                found[pair % 2**32] += worth
        wanted = {other: worth for (one, other), worth in expected.items() if one == item}
        assert found.keys() == wanted.keys()
        assert [found[other] for other in wanted] == pytest.approx(list(wanted.values()))
    grown = sums.padded(210)
    assert grown.total[200:].tolist() == [0.0] * 10 and grown.parts is sums.parts
