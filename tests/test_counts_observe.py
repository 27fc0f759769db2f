"""Counts that move on by new clicks, against counts made anew from all clicks."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from count_worlds import ALL, LIVE, SPAN, UPSTREAM, arrivals, arrivals_until, asked, every_score, moments_seen, world
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.recipes import Transitions, asked_pairs
from metarec.versions import version

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


@pytest.mark.parametrize("name", LIVE)
def test_now_is_the_moment_after_the_last_click(name: str) -> None:
    data = world(5)
    model, query = LIVE[name](data), asked(6)
    now = torch.full(query.target.shape, float(data.time.max()) + 1)
    now = torch.nextafter(now.double(), now.double() + 1)
    same_query = replace(query, time=now)
    torch.testing.assert_close(every_score(model, query), every_score(model, same_query), atol=1e-6, rtol=0)
    assert not torch.allclose(every_score(model, query), every_score(model, replace(query, time=now * 0 + 150)))


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
    if not any(
        own in name for own in ("transitions", "co-clicks", "ItemKNN")
    ):  # those count back from the last click, whatever it is
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
