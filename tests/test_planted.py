"""The planted world against its own description, counted by plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from metarec.data.dataset import Dataset
from metarec.data.split import split_by_time
from metarec.datasets.planted import PLANTED_SPLIT, planted

CLICKS_AND_TIMES = dict[int, list[tuple[int, str, int]]]


def walks(data: Dataset) -> CLICKS_AND_TIMES:
    """User -> (item, its cluster, time) of every click, in the order of the rows."""
    cluster = data.catalog.attributes["cluster"]
    out: CLICKS_AND_TIMES = {}
    for user, item, time in zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True):
        out.setdefault(user, []).append((item, cluster[item - 1], time))
    return out


def successors(clicks: list[tuple[int, str, int]]) -> dict[str, set[str]]:
    """Cluster -> the clusters that came right after it."""
    out: dict[str, set[str]] = {}
    for (_, now, _), (_, then, _) in pairwise(clicks):
        out.setdefault(now, set()).add(then)
    return out


@pytest.mark.parametrize("adaptation", [0.0, 0.5, 1.0])
def test_each_user_follows_one_rule(adaptation: float) -> None:
    periods: Counter[int] = Counter()
    for clicks in walks(planted(users=300, adaptation=adaptation)).values():
        rule = successors(clicks)
        assert all(len(then) == 1 for then in rule.values())
        assert len({next(iter(then)) for then in rule.values()}) == len(rule), "no two clusters lead to the same"
        period = len(rule)
        assert [c for _, c, _ in clicks[period:]] == [c for _, c, _ in clicks[:-period]]
        periods[period] += 1
    assert set(periods) == {2, 3, 5}
    assert abs(periods[5] / 300 - 0.5) < 0.1


def test_five_transitions_hold_the_one_that_is_asked_for() -> None:
    for clicks in walks(planted(users=200)).values():
        for query in range(6, len(clicks)):
            known = successors(clicks[query - 6 : query])
            assert known[clicks[query - 1][1]] == {clicks[query][1]}


def test_the_rule_is_shared_at_zero_and_personal_at_one() -> None:
    def all_successors(adaptation: float) -> dict[str, Counter[str]]:
        out: dict[str, Counter[str]] = {}
        for clicks in walks(planted(users=4000, adaptation=adaptation)).values():
            for (_, now, _), (_, then, _) in pairwise(clicks):
                out.setdefault(now, Counter())[then] += 1
        return out

    assert all(len(then) == 1 for then in all_successors(0.0).values())
    shares = [max(then.values()) / sum(then.values()) for then in all_successors(0.5).values()]
    assert min(shares) > 0.48 and max(shares) < 0.63  # half the users, and by chance a ninth of the others: 0.56
    for now, then in all_successors(1.0).items():
        assert len(then) == 9 and now not in then
        assert max(then.values()) / sum(then.values()) < 0.17  # 1/9 by design


def test_pure_noise_has_no_pattern() -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    for clicks in walks(planted(users=3000, noise=1.0)).values():
        pairs.update((a, b) for (_, a, _), (_, b, _) in pairwise(clicks))
    total = sum(pairs.values())
    chi2 = sum((pairs[str(a), str(b)] - total / 100) ** 2 / (total / 100) for a in range(10) for b in range(10))
    assert chi2 < 160  # 99 degrees of freedom, 1 in 10,000


def test_noise_is_the_share_of_clicks_off_the_rule() -> None:
    kept = total = 0
    for clicks in walks(planted(users=2000, adaptation=0.0, noise=0.3)).values():
        for (_, a, _), (_, b, _) in pairwise(clicks):
            kept += b == RULE[a]
            total += 1
    assert abs(kept / total - (0.7 + 0.3 / 10)) < 0.01


RULE = {
    now: next(iter(then))
    for clicks in walks(planted(users=200, adaptation=0.0)).values()
    for now, then in successors(clicks).items()
}


def test_every_item_of_a_cluster_is_equally_popular() -> None:
    data = planted(users=3000)
    up, _ = split_by_time(data, at=PLANTED_SPLIT)
    counts = np.bincount(up.item, minlength=301)[1:271]
    assert abs(counts / counts.mean() - 1).max() < 0.6


@pytest.mark.parametrize("items", [20, 37, 300])
def test_cold_users_and_cold_items_come_after_the_split(items: int) -> None:
    data = planted(users=2500, items=items, noise=0.2)
    upstream: set[int] = set()
    downstream: set[int] = set()
    for user, clicks in walks(data).items():
        times = [time for _, _, time in clicks]
        assert 8 <= len(clicks) <= 14 and all(a < b for a, b in pairwise(times))
        assert times[-1] <= PLANTED_SPLIT or times[0] > PLANTED_SPLIT
        assert (times[0] > PLANTED_SPLIT) == (user > 2000)
        (downstream if times[0] > PLANTED_SPLIT else upstream).update(item for item, _, _ in clicks)
    first_cold = items - items // 10 + 1
    assert upstream == set(range(1, first_cold))
    assert downstream == set(range(1, items + 1))
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    assert (len(up.user_codes), len(down.user_codes)) == (2000, 500)
    assert down.cold_items.tolist() == list(range(first_cold, items + 1))


def nearest_shares_cluster(data: Dataset, modality: str) -> float:
    features, clusters = data.catalog[modality].features[1:].numpy(), data.catalog.attributes["cluster"]
    hits = 0
    for i, row in enumerate(features):
        distance = ((features - row) ** 2).sum(1)
        distance[i] = np.inf
        hits += clusters[int(distance.argmin())] == clusters[i]
    return hits / len(features)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_features_tell_the_cluster_unless_shuffled(modality: str) -> None:
    plain, shuffled = planted(users=50, seed=2), planted(users=50, seed=2, shuffle_features=True)
    assert nearest_shares_cluster(plain, modality) > 0.97
    assert nearest_shares_cluster(shuffled, modality) < 0.2
    ours, theirs = plain.catalog[modality].features, shuffled.catalog[modality].features
    assert sorted(map(tuple, ours[1:].tolist())) == sorted(map(tuple, theirs[1:].tolist()))
    assert not ours[0].any() and not plain.catalog[modality].present[0] and plain.catalog[modality].present[1:].all()
    assert np.array_equal(plain.item, shuffled.item) and np.array_equal(plain.time, shuffled.time)


def test_the_seed_decides() -> None:
    one, again, other = planted(users=40), planted(users=40), planted(users=40, seed=1)
    assert np.array_equal(one.item, again.item) and np.array_equal(one.time, again.time)
    assert torch.equal(one.catalog["text"].features, again.catalog["text"].features)
    assert not torch.equal(one.catalog["text"].features, other.catalog["text"].features)
    assert one.item[:8].tolist() != other.item[:8].tolist()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("users", 4, "users .*least 5, got 4"),
        ("items", 19, "items .*least 20, got 19"),
        ("adaptation", 1.5, "adaptation must be between 0 and 1, got 1.5"),
        ("noise", -0.1, "noise must be between 0 and 1, got -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted(**{name: value})
