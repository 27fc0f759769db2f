"""The episode sampler against a plain loop over each user's clicks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.data.histories import Clicks
from metarec.data.sampler import EpisodeSampler, Part
from metarec.data.support import SupportMaker
from metarec.types import EpisodeBatch, Examples


def dataset(clicks: dict[int, list[int]], items: int = 9, warm: list[int] | None = None) -> Dataset:
    """A Dataset of hand-written clicks: user code -> item codes in time order."""
    user = np.array([u for u in sorted(clicks) for _ in clicks[u]], dtype=np.int64)
    item = np.array([i for u in sorted(clicks) for i in clicks[u]], dtype=np.int64)
    known = np.zeros(items + 1, dtype=bool)
    known[list(range(1, items + 1)) if warm is None else warm] = True
    users = Vocabulary([f"u{u}" for u in range(1, max(clicks) + 1)], what="user")
    catalog = Catalog(Vocabulary([f"i{i}" for i in range(1, items + 1)]))
    return Dataset(users, catalog, user, item, np.arange(len(user)), known)


def rows(examples: Examples, row: int) -> list[tuple[list[int], int]]:
    """(history that the example may read, target) of every real example of one user."""
    out = []
    for position, target, weight in zip(
        examples.position[row].tolist(), examples.target[row].tolist(), examples.weight[row].tolist(), strict=True
    ):
        if weight:
            out.append((examples.history[row, : position + 1].tolist(), target))
    return out


def expected(x: list[int], part: str, queries: float) -> tuple[list[tuple[list[int], int]], ...]:
    """Support and query of one user, one example at a time."""
    n = len(x)
    if part == "train":
        q = queries if isinstance(queries, int) else max(1, round(n * queries))
        q = min(q, n - 2)
        return [(x[:t], x[t]) for t in range(1, n - q)], [(x[:t], x[t]) for t in range(n - q, n)]
    support = [(x[:t], x[t]) for t in range(1, n - 2)]
    t = n - 2 if part == "validation" else n - 1
    return support, [(x[:t], x[t])]


def by_user(sampler: EpisodeSampler, epoch: int = 0) -> dict[int, tuple[EpisodeBatch, int]]:
    return {int(u): (b, r) for b in sampler.epoch(epoch) for r, u in enumerate(b.user)}


worlds = st.dictionaries(
    st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=11), min_size=1, max_size=8
).filter(lambda d: max(map(len, d.values())) >= 4)


@settings(max_examples=80, deadline=None)
@given(
    worlds, st.sampled_from(["train", "validation", "test"]), st.sampled_from([1, 2, 5, 0.25, 0.5]), st.integers(1, 5)
)
def test_every_user_matches_a_plain_loop(
    clicks: dict[int, list[int]], part: Part, queries: float, users_per_batch: int
) -> None:
    data = dataset(clicks)
    sampler = EpisodeSampler(data, part=part, queries=queries, users_per_batch=users_per_batch, negatives=3)
    least = 3 if part == "train" else 4
    wanted = {u for u, x in clicks.items() if len(x) >= least}
    batches = list(sampler.epoch(2))
    assert len(batches) == len(sampler)
    assert sorted(int(u) for b in batches for u in b.user) == sorted(wanted)
    assert sampler.users == len(wanted) and sampler.user_codes.tolist() == sorted(wanted)
    assert list(sampler.refused.values()) == [len(clicks) - len(wanted)]
    for batch in batches:
        for row, user in enumerate(batch.user.tolist()):
            assert (rows(batch.support, row), rows(batch.query, row)) == expected(clicks[user], part, queries)


@settings(max_examples=40, deadline=None)
@given(worlds, st.sampled_from(["train", "validation", "test"]), st.integers(0, 3))
def test_padding_is_zero_trimmed_and_weightless(clicks: dict[int, list[int]], part: Part, seed: int) -> None:
    sampler = EpisodeSampler(dataset(clicks), part=part, users_per_batch=3, seed=seed, queries=2, negatives=2)
    for batch in sampler.epoch(0):
        lengths = (batch.query.history > 0).sum(1).tolist()
        assert lengths == sorted(lengths, reverse=True)
        for examples in (batch.support, batch.query):
            used, real = examples.history > 0, examples.weight > 0
            assert bool((used[:, :-1] | ~used[:, 1:]).all()), "padding only on the right"
            assert bool(used[:, -1].any()) and bool(real[:, -1].any()), "no column is padding alone"
            assert set(examples.weight.flatten().tolist()) <= {0.0, 1.0}
            for field in (examples.position, examples.target):
                assert not field[~real].any()
            assert not examples.negatives[~real].any()
            assert bool((examples.negatives[real] > 0).all())
            assert examples.history.dtype == examples.target.dtype == examples.negatives.dtype == torch.int64


@settings(max_examples=40, deadline=None)
@given(worlds, st.lists(st.integers(1, 9), min_size=2, max_size=9, unique=True), st.booleans())
def test_negatives_are_warm_and_never_the_target(clicks: dict[int, list[int]], warm: list[int], popular: bool) -> None:
    data = dataset(clicks, warm=warm)
    how: Literal["uniform", "popularity"] = "popularity" if popular else "uniform"
    drawable = set(warm) & {i for x in clicks.values() for i in x} if popular else set(warm)
    if len(drawable) < 2:
        with pytest.raises(ValueError, match="at least 2 warm items"):
            EpisodeSampler(data, negative_sampling=how)
        return
    for batch in EpisodeSampler(data, negatives=6, negative_sampling=how).epoch(1):
        for examples in (batch.support, batch.query):
            real = examples.weight > 0
            assert not (examples.negatives == examples.target[..., None])[real].any()
            assert set(examples.negatives[real].flatten().tolist()) <= drawable


def test_long_users_are_cut_to_a_window() -> None:
    x = list(range(1, 31))
    data = dataset({1: x, 2: [3, 1, 2, 5]}, items=30)
    seen = set()
    for epoch in range(60):
        batch, row = by_user(EpisodeSampler(data, max_length=6, queries=2), epoch)[1]
        history = batch.query.history[row].tolist()
        window = x[history[0] - 1 : history[0] + 6]
        assert (rows(batch.support, row), rows(batch.query, row)) == expected(window, "train", 2)
        seen.add(history[0])
    assert seen <= set(range(1, 25)) and len(seen) > 15
    for part in ("validation", "test"):
        batch, row = by_user(EpisodeSampler(data, max_length=6, part=part))[1]
        assert (rows(batch.support, row), rows(batch.query, row)) == expected(x[-7:], part, 1)


def test_first_and_last_window_are_drawn() -> None:
    sampler = EpisodeSampler(dataset({1: [1, 2, 3, 4, 5, 6]}), max_length=3)
    starts = [int(next(sampler.epoch(e)).query.history[0, 0]) for e in range(300)]
    counts = np.bincount(starts, minlength=4)[1:]
    assert set(starts) == {1, 2, 3} and abs(counts - 100).max() < 35


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    one = (a.user, *a.support.tensors(), *a.query.tensors())
    two = (b.user, *b.support.tensors(), *b.query.tensors())
    return all(torch.equal(s, t) for s, t in zip(one, two, strict=True))


def random_clicks(users: int = 60, seed: int = 0) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {u: rng.integers(1, 10, rng.integers(2, 15)).tolist() for u in range(1, users + 1)}


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    data = dataset(random_clicks())
    sampler = EpisodeSampler(data, seed=3, users_per_batch=8, max_length=5)
    first = {e: list(sampler.epoch(e)) for e in (0, 1, 2)}
    half_read = sampler.epoch(1)
    next(half_read)
    again = EpisodeSampler(data, seed=3, users_per_batch=8, max_length=5)
    for e in (2, 0, 1):
        for a, b in zip(first[e], again.epoch(e), strict=True):
            assert same(a, b)
    orders = {tuple(int(u) for b in first[e] for u in b.user) for e in first}
    other = tuple(int(u) for b in replace(sampler, seed=4).epoch(0) for u in b.user)
    assert len(orders | {other}) == 4
    assert same(next(half_read), first[1][1])


def test_validation_and_test_keep_code_order_and_share_the_support() -> None:
    train = EpisodeSampler(dataset(random_clicks()), users_per_batch=8, max_length=6, seed=1)
    validation, test = train.with_part("validation"), train.with_part("test")
    blocks = [sorted(b.user.tolist()) for b in test.epoch(5)]
    assert [u for block in blocks for u in block] == test.user_codes.tolist()
    ours, theirs = by_user(validation), by_user(test)
    assert ours.keys() == theirs.keys()
    for user, (batch, row) in ours.items():
        other, other_row = theirs[user]
        assert rows(batch.support, row) == rows(other.support, other_row)
        ((history, target),) = rows(batch.query, row)
        ((later, _),) = rows(other.query, other_row)
        assert later[-len(history) - 1 :] == [*history, target]


def test_negatives_are_uniform_over_the_other_warm_items() -> None:
    data = dataset({1: [1, 4, 9, 4, 4]}, warm=[2, 4, 5, 7, 8])
    batch = next(EpisodeSampler(data, negatives=20_000).epoch(0))
    for target, drawn in zip(batch.support.target[0].tolist(), batch.support.negatives[0], strict=True):
        others = [i for i in (2, 4, 5, 7, 8) if i != target]  # 9 is cold: nothing to leave out
        share = np.bincount(drawn.numpy(), minlength=10) / 20_000
        wanted = np.zeros(10)
        wanted[others] = 1 / len(others)
        chi2 = float((20_000 * (share - wanted)[others] ** 2 / wanted[others]).sum())
        assert share[wanted == 0].sum() == 0 and chi2 < 25


def test_popular_negatives_follow_the_counts_without_the_target() -> None:
    clicks = {1: [1, 2, 2, 3, 3], 2: [3, 3, 4, 4, 4, 4], 3: [5, 5]}
    data = dataset(clicks, warm=[1, 2, 3, 4, 6])
    counts = np.array([0, 1, 2, 4, 4, 0, 0, 0, 0, 0])  # by hand; 5 is cold, 6 is never clicked
    sampler = EpisodeSampler(data, negatives=30_000, negative_sampling="popularity")
    batch, row = by_user(sampler)[1]
    for target, drawn in zip(batch.support.target[row].tolist(), batch.support.negatives[row], strict=True):
        if target:
            wanted = np.where(np.arange(10) == target, 0, counts) / (counts.sum() - counts[target])
            assert abs(np.bincount(drawn.numpy(), minlength=10) / 30_000 - wanted).max() < 0.015


def test_for_users_restricts_and_keeps_the_negatives() -> None:
    data = dataset({1: [1, 2, 3], 2: [4, 5], 3: [6, 7, 8, 9], 4: [1, 2, 3, 4]})
    sampler = EpisodeSampler(data, negatives=50)
    some = sampler.for_users([4, 2, 3, 4])
    assert some.user_codes.tolist() == [3, 4] and dict(some.refused) == {"users with fewer than 3 clicks": 1}
    assert sampler.users == 3
    batch = next(some.for_users([4]).epoch(0))
    assert batch.user.tolist() == [4]
    assert set(batch.query.negatives.flatten().tolist()) == set(range(1, 10)) - {4}
    with pytest.raises(ValueError, match=r"1 .*sampler.* 1"):
        some.for_users([1, 4])
    with pytest.raises(ValueError, match="the first is 7"):
        EpisodeSampler(data, only=np.array([7]))
    with pytest.raises(ValueError, match=r"no .*sampled"):
        sampler.for_users([2])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"seed": -1}, "seed .*least 0, got -1"),
        ({"users_per_batch": 0}, "users_per_batch must be at least 1"),
        ({"max_length": 2}, "max_length must be at least 3, got 2"),
        ({"negatives": -1}, "negatives .*least 0"),
        ({"part": "valid"}, "part .*of .* got 'valid'"),
        ({"negative_sampling": "hard"}, "'uniform' or 'popularity', got 'hard'"),
        ({"queries": 0}, "queries .*least 1 or a share"),
        ({"queries": 1.0}, "queries .*least 1 or a share"),
        ({"part": "test"}, "2 of 2 .*fewer.* 4 clicks .the longest has 3.; give users with"),
    ],
)
def test_bad_settings_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(dataset({1: [1, 2, 3], 2: [1, 2]}), **settings_)


def test_no_negatives_need_no_warm_items_and_epochs_start_at_zero() -> None:
    data = dataset({1: [1, 2, 3]}, warm=[1])
    with pytest.raises(ValueError, match=r"at least 2 .*drawn.* 1"):
        EpisodeSampler(data)
    sampler = EpisodeSampler(data, negatives=0)
    assert next(sampler.epoch(0)).support.negatives.shape == (1, 1, 0)
    with pytest.raises(ValueError, match=r"epoch .*least 0, got -1"):
        sampler.epoch(-1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 6))
def test_support_of_new_users_matches_a_plain_loop(histories: list[list[int]], max_length: int) -> None:
    warm = np.array([False] + [True] * 7 + [False] * 2)
    maker = SupportMaker(warm, negatives=4, max_length=max_length)
    support, query = maker(Clicks.join([np.array(history) for history in histories]))
    for row, history in enumerate(histories):
        x = history[-max_length:]
        assert rows(support, row) == [(x[:t], x[t]) for t in range(1, len(x))]
        assert rows(query, row) == [(x, 0)]
        assert int(support.history[row, 0]) == x[0]
        alone, _ = maker(Clicks.join([np.array(history)]))  # nobody else matters
        assert torch.equal(support.negatives[row, : len(x) - 1], alone.negatives[0, : len(x) - 1])
    real = support.weight > 0
    assert not (support.negatives == support.target[..., None])[real].any()
    assert bool(warm[support.negatives[real].numpy()].all())


def test_a_user_who_is_evaluated_as_served_has_the_support_of_one_who_is_served() -> None:
    clicks = random_clicks(20)
    data = dataset(clicks, warm=[1, 2, 3, 4, 5, 6])
    for user, (batch, row) in by_user(EpisodeSampler(data, part="serving", negatives=3, max_length=5, seed=4)).items():
        support, query = SupportMaker(data.warm, negatives=3, max_length=5)(Clicks.join([np.array(clicks[user][:-1])]))
        n = int(support.weight.sum())
        assert rows(support, 0) == rows(batch.support, row)
        assert torch.equal(support.negatives[0, :n], batch.support.negatives[row, :n])
        assert rows(query, 0)[0][0] == rows(batch.query, row)[0][0]
