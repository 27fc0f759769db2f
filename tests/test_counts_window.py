"""What leaves the window in which clicks count, and what it costs to move on."""

from __future__ import annotations

import pytest
import torch

from count_worlds import SPAN, arrivals_until, asked, every_score, many, world
from metarec.recipes import CoClicks, LivePopularity, Transitions, pair_sums
from metarec.recipes.click_log import ClickLog
from metarec.recipes.pair_counts import PairCounts
from metarec.recipes.pair_events import PairRule


def same(one, other, query) -> None:
    torch.testing.assert_close(every_score(one, query), every_score(other, query), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("half_life", [0.5, 3.0])
def test_a_long_time_between_clicks(half_life: float) -> None:
    """Weights are measured from another time before they overflow, and what is old leaves."""
    parts = [world(seed, clicks=60, start=seed * 100_000) for seed in range(3)]
    parts += [world(seed, clicks=60, start=300_000 + seed * SPAN) for seed in range(6)]
    whole = arrivals_until(parts, len(parts), parts[0])
    for make in (
        lambda data: Transitions(data, half_life=half_life, live=True),
        lambda data: LivePopularity(data, window=12.0 * half_life, half_life=half_life),
    ):
        model = make(parts[0])
        for part in parts[1:]:
            model.observe(part)
        same(model, make(whole), asked(3))
        same(model, make(whole), asked(3, time=[50.0, 100_200.0, 300_300.0]))


def test_the_work_of_a_click_does_not_grow_with_the_clicks_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that are sorted a click, after few and after many clicks."""
    sorted_pairs = [0]
    summed = pair_sums.summed

    def counting(key, weight):
        sorted_pairs[0] += len(key)
        return summed(key, weight)

    monkeypatch.setattr(pair_sums, "summed", counting)
    work = []
    for clicks in (1_000, 16_000):
        model = CoClicks(many(1, clicks), live=True)
        sorted_pairs[0] = 0
        for call in range(1, 60):
            model.observe(many(call, 5, 50 * call))
        work.append(sorted_pairs[0] / 300)
    assert work[1] < 2 * work[0] < 1_000


def test_pairs_that_have_left_are_not_kept() -> None:
    log, rule = ClickLog.of(many(0, 200)), PairRule(10, half_life=20.0, forgotten=12)  # 1,000 clicks count
    counted = PairCounts.of(log, rule, 2001)
    for call in range(1, 60):
        counted = counted.followed_by(many(call, 200, 50 * call))
    assert sum(len(part.key) for part in counted.sums.parts) < 3 * 10 * 1000
    assert counted.log is not None and len(counted.log) == 60 * 200


@pytest.mark.parametrize("gap", [1_350, 1_000_000])
def test_few_clicks_long_ago_before_many(gap: int) -> None:
    """Some of a call are too old at its end; the weights that float64 holds end after 1,024 half-lives."""
    first, early, late = many(0, 10), many(3, 8, 100), many(1, 100, gap)
    query = asked(3)
    for number, item in enumerate((first, early)):
        query.history[:, number::3][query.history[:, number::3] > 0] = int(item.item[0])
    then = arrivals_until([early, late], 2, late)
    for make in (
        lambda data: Transitions(data, half_life=100.0, live=True),
        lambda data: LivePopularity(data, window=1e9, half_life=100.0),
    ):
        model = make(first).observe(then)
        found, expected = every_score(model, query), every_score(make(arrivals_until([first, then], 2, then)), query)
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
