"""Counts that move on by new clicks, against counts made anew from all clicks."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from count_worlds import ALL, LIVE, SPAN, UPSTREAM, arrivals, asked, every_score, moments_seen, world
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.model import version
from metarec.recipes import CoClicks, LivePopularity, Transitions, asked_pairs, pair_sums
from metarec.recipes.click_log import ClickLog
from metarec.recipes.pair_counts import PairCounts
from metarec.recipes.pair_events import PairRule

PAST = [0.0, 17.0, 17.5, 200.0, 399.0, 400.0, 1000.0]


def same(one, other, query) -> None:
    torch.testing.assert_close(every_score(one, query), every_score(other, query), atol=1e-6, rtol=1e-6)


CUTS = [(2, 250), (5, 40), (30, 10), (120, 30), (2, 40), (4, 20), (9, 20)]  # how many calls, and clicks in the first


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("name", LIVE)
def test_clicks_in_any_calls_count_as_all_at_once(name: str, seed: int) -> None:
    calls, first = CUTS[seed]
    data, calls = arrivals(world(seed, late=seed > 3), seed, calls=calls, first=first)
    model, whole = LIVE[name](calls[0]), LIVE[name](data)
    for number, call in enumerate(calls[1:]):
        assert model.observe(call) is model
        if number == len(calls) // 2:
            same(model, LIVE[name](arrivals_until(calls, number + 2, data)), asked(seed))
    same(model, whole, asked(seed))
    same(model, whole, asked(seed + 1, time=PAST))
    same(model, whole, replace(asked(seed + 1), time=asked(2, time=[float("nan"), 300.0]).time))


def arrivals_until(calls: list[Dataset], count: int, data: Dataset) -> Dataset:
    """The first calls as one data set under the whole vocabulary."""
    parts = [(data.users.encode([c.users.ids[u - 1] for u in c.user]), c.item, c.time) for c in calls[:count]]
    user, item, time = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((np.arange(len(user)), time, user))
    return replace(data, user=user[order], item=item[order], time=time[order])


@pytest.mark.parametrize("name", LIVE)
def test_now_is_the_moment_after_the_last_click(name: str) -> None:
    data = world(5)
    model, query = LIVE[name](data), asked(6)
    now = torch.full(query.target.shape, float(data.time.max()) + 1)
    now = torch.nextafter(now.double(), now.double() + 1)
    same_query = replace(query, time=now)
    torch.testing.assert_close(every_score(model, query), every_score(model, same_query), atol=1e-6, rtol=0)
    assert not torch.allclose(every_score(model, query), every_score(model, replace(query, time=now * 0 + 150)))


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


@pytest.mark.parametrize("name", LIVE)
def test_a_state_uses_the_counts_of_the_moment_and_scores_stay(name: str) -> None:
    data, calls = arrivals(world(7), 7, calls=3, first=100)
    model, query = LIVE[name](calls[0]), asked(7)
    state = model.encode(query, query)
    scores = model.scores(state)
    everything = torch.arange(31).expand(len(state), -1)
    before = [scores.exact(everything), scores.approximate(0, 31), *scores.moments()]
    seen = version(model)
    model.observe(calls[1]).observe(calls[2])
    assert version(model) != seen
    after = [scores.exact(everything), scores.approximate(0, 31), *scores.moments()]
    assert all(map(torch.equal, before, after))
    expected = every_score(LIVE[name](data), query)
    torch.testing.assert_close(model.scores(state).exact(everything), expected, atol=1e-6, rtol=0)
    larger = model.add_items(Catalog(Vocabulary(["new"])))
    found = larger.scores(state).exact(torch.arange(32).expand(len(state), -1))
    torch.testing.assert_close(found[:, :31], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 31], expected[:, 0], atol=1e-6, rtol=0)
    assert all(map(torch.equal, before, [scores.exact(everything), scores.approximate(0, 31), *scores.moments()]))


@pytest.mark.parametrize("name", LIVE)
def test_copies_move_on_apart(name: str) -> None:
    data, calls = arrivals(world(8), 8, calls=4, first=100)
    one = LIVE[name](calls[0])
    for number, way in enumerate((copy.copy, copy.deepcopy)):
        other = way(one)
        before = list(moments_seen(one))
        other.observe(calls[1])
        assert all(map(torch.equal, before, moments_seen(one)))
        mine = [replace(calls[1], item=26 - calls[1].item), calls[3]][number]
        third = copy.copy(one).observe(mine)
        other.observe(calls[2]).observe(calls[3])
        for query in (asked(9), asked(9, time=PAST)):
            same(other, LIVE[name](data), query)
            same(third, LIVE[name](arrivals_until([calls[0], mine], 2, data)), query)


@pytest.mark.parametrize("name", LIVE)
def test_items_that_are_added_can_be_clicked(name: str) -> None:
    data = world(10, clicks=200)
    model = LIVE[name](data)
    before = list(moments_seen(model))
    larger = model.add_items(Catalog(Vocabulary(["new", "newer"])))
    assert larger.catalog.items.ids[-2:] == ("new", "newer") and larger.catalog.size == 33
    assert larger.item_mask().tolist() == [False] + [True] * 32
    warm = np.pad(data.warm, (0, 2))
    more = Dataset(
        data.users, larger.catalog, np.array([1, 1, 2]), np.array([31, 4, 32]), np.array([500, 501, 501]), warm
    )
    larger.observe(more)
    whole = arrivals_until([data, more], 2, replace(data, catalog=larger.catalog, warm=warm))
    for query in (asked(11), asked(11, time=[*PAST, 501.0, 501.5])):
        query.history[query.history == 3] = 31
        same(larger, LIVE[name](whole), query)
    assert all(map(torch.equal, before, moments_seen(model)))
    with pytest.raises(ValueError, match="31"):
        model.observe(more)


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_counts_stay_and_do_not_know_added_items(name: str) -> None:
    data, later = world(12), world(13, start=SPAN)
    model, query = UPSTREAM[name](data), asked(12)
    before, mask = every_score(model, query), model.item_mask()
    assert torch.equal(every_score(model.observe(later), query), before)
    larger = model.add_items(Catalog(Vocabulary(["new"])))
    assert larger.item_mask().tolist() == [*mask.tolist(), False] and larger.catalog.size == 32
    assert larger.warm.tolist() == [*data.warm.tolist(), False]
    torch.testing.assert_close(every_score(larger, query)[:, :31], before, atol=1e-12, rtol=0)
    for one, other in zip(*(m.scores(m.encode(query, query)).moments() for m in (model, larger)), strict=True):
        torch.testing.assert_close(one, other)
    with_new = replace(query, history=torch.where(query.history > 5, 31, query.history))
    without = replace(query, history=torch.where(query.history > 5, 0, query.history))
    if "transitions" not in name and "co-clicks" not in name:  # those count back from the last click, whatever it is
        assert torch.equal(every_score(larger, with_new), every_score(larger, without))
    assert model.catalog.size == 31 and torch.equal(every_score(model, asked(12)), before)
    with pytest.raises(ValueError, match="new"):
        larger.add_items(Catalog(Vocabulary(["new"])))


@pytest.mark.parametrize("name", LIVE)
def test_what_cannot_be_counted_is_named_and_changes_nothing(name: str) -> None:
    data = world(14)
    model = LIVE[name](data)
    before, last = list(moments_seen(model)), int(data.time.max())
    people = Vocabulary(["u1", "ann"], "user")
    click = lambda item, time, catalog=data.catalog: Dataset(  # noqa: E731
        people, catalog, np.array([1, 2]), np.array([3, item]), np.array([last, time]), np.zeros(catalog.size, bool)
    )
    with pytest.raises(ValueError, match=rf"'ann'.* {last - 1}\b.* {last}\b"):
        model.observe(click(4, last - 1))
    for wrong in (0, 31, -1):
        with pytest.raises(ValueError, match=rf"item code {wrong} "):
            model.observe(click(wrong, last))
    with pytest.raises(ValueError, match="'i9'"):
        model.observe(click(4, last, Catalog(Vocabulary([f"i{n}" for n in (0, 1, 2, 9, 4)]))))
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=rf"user code {wrong}\b"):
            model.observe(replace(click(4, last), user=np.sort(np.array([1, wrong]))))
    assert all(map(torch.equal, before, moments_seen(model)))
    nothing = replace(data, user=data.user[:0], item=data.item[:0], time=data.time[:0])
    model.observe(nothing)
    assert all(map(torch.equal, before, moments_seen(model)))
    model.observe(click(4, last))  # at the same time is not earlier
    assert not torch.equal(before[0], next(moments_seen(model)))


def many(seed: int, clicks: int, start: int = 0) -> Dataset:
    """Clicks on 2,000 items, 20 a user."""
    rng = np.random.default_rng(seed)
    users = max(1, clicks // 20)
    user, item = np.sort(rng.integers(1, users + 1, clicks)), rng.integers(1, 2001, clicks)
    catalog = Catalog(Vocabulary([f"i{n}" for n in range(2000)]))
    people = Vocabulary([f"u{n}" for n in range(users)], "user")
    time = start + np.arange(clicks) % 50
    order = np.lexsort((time, user))
    return Dataset(people, catalog, user[order], item[order], time[order], np.ones(2001, dtype=bool))


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
    assert sum(len(key) for key, _ in counted.sums.parts) < 3 * 10 * 1000
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


def test_users_are_told_by_their_ids() -> None:
    """A pair that begins with a click of long ago, by a user who is in the base, was added, or is new."""
    data = world(15)
    base = Transitions(data, live=True)
    for who in ("u1", "u27", "new"):  # u27 is in the vocabulary and has not clicked
        model = copy.copy(base)
        for time, item in ((1000, 26), (1001, 27), (1002, 28)):
            people = Vocabulary([f"other{time}", who], "user")
            model.observe(Dataset(people, data.catalog, np.array([2]), np.array([item]), np.array([time]), data.warm))
        history = torch.tensor([[26]])
        query = replace(asked(1, users=2), history=history.expand(2, 1), position=torch.zeros(2, 2, dtype=torch.int64))
        found = every_score(model, query)[0].exp() - Transitions.least
        expected = torch.zeros(31, dtype=torch.float64)
        expected[[27, 28]] = 1 / 32
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_readers_in_other_threads_see_whole_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_pairs, "FEW_RANGES", 4)
    calls = arrivals(world(16), 16, calls=40, first=200)[1]
    make, query = LIVE["transitions, fast decay"], asked(16)
    model = make(calls[0])
    states = [copy.copy(model)]
    for call in calls[1:]:
        states.append(copy.copy(copy.copy(states[-1]).observe(call)))
    wanted = [every_score(state, query) for state in states]
    found, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            found.append(every_score(model, query))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for call in calls[1:]:
        model.observe(call)
    stop.set()
    for reader in readers:
        reader.join()
    found.append(every_score(model, query))
    assert all(any(torch.allclose(one, other, atol=1e-9) for other in wanted) for one in found)
    assert torch.allclose(found[-1], wanted[-1], atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_user_without_history(name: str) -> None:
    model = ALL[name](world(17))
    state = model.encode_empty()
    assert len(state) == 1
    empty = replace(asked(1), history=torch.zeros(12, 26, dtype=torch.int64))
    torch.testing.assert_close(
        model.scores(state).approximate(0, 31), model.adapt(empty)(empty).scores[0, :1], atol=0, rtol=0
    )
    with pytest.raises(ValueError, match="keep_weights"):
        model.encode(empty, empty, keep_weights=True)
