"""New clicks at a recommender: counts that moved on are those of a rebuild, and users who are known by id go on."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from metarec import Dataset, Recommender, load, save
from metarec.data import split_by_time
from metarec.data.examples import filter_interactions
from metarec.data.observed import Histories
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.learning import DAY
from metarec.model import Model
from metarec.recipes import EASE, CoClicks, Ensemble, LivePopularity, Popularity, Transitions
from optional import imported

DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
EARLY = filter_interactions(DATA, DATA.time <= np.quantile(DATA.time, 0.8))
LATE = filter_interactions(DATA, DATA.time > np.quantile(DATA.time, 0.8))
ORDER = np.argsort(LATE.time, kind="stable")
CLICKS = {
    "user": LATE.users.decode(LATE.user[ORDER].tolist()),
    "item": LATE.catalog.items.decode(LATE.item[ORDER].tolist()),
    "time": LATE.time[ORDER].astype(float).tolist(),
}
LAST = int(DATA.time.max())
HISTORIES = [["item3", "item14", "item15"], ["item7"], [], ["item20", "item21", "item3", "item9"]]


def counts(data: Dataset) -> dict[str, Model]:
    return {
        "popularity": LivePopularity(data, window=60.0, half_life=10.0),
        "transitions": Transitions(data, half_life=20.0, live=True),
        "co-clicks": CoClicks(data, live=True),
    }


def ensemble(data: Dataset) -> Ensemble:
    model = Ensemble({**counts(data), "ease": EASE(UP), "all": Popularity(UP)}, UP)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        model.weights.weight.copy_(torch.randn(model.weights.weight.shape, generator=draw))
    return model


def part(first: int, last: int) -> dict[str, list[Any]]:
    return {name: column[first:last] for name, column in CLICKS.items()}


def scores(recommender: Recommender) -> torch.Tensor:
    return torch.stack([user.scores for user in recommender.adapt(HISTORIES)])


@pytest.mark.parametrize("cuts", [(0, 10_000), (0, 1, 2, 40, 10_000)])
@pytest.mark.parametrize("name", [*counts(EARLY), "ensemble"])
def test_what_was_observed_counts_as_if_it_had_always_been_there(name: str, cuts: tuple[int, ...]) -> None:
    model, rebuilt = ((ensemble(data) if name == "ensemble" else counts(data)[name]) for data in (EARLY, DATA))
    recommender, before = Recommender(model), scores(Recommender(copy.copy(model)))
    users = recommender.adapt(HISTORIES)
    done = [recommender.observe(part(a, b)) for a, b in itertools.pairwise(cuts)]
    assert sum(one.clicks for one in done) == len(LATE) and set(done[0].new_users) <= set(CLICKS["user"])
    after = scores(recommender)
    torch.testing.assert_close(after, scores(Recommender(rebuilt)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(torch.stack([user.scores for user in users]), after)  # handles move on, too


def test_a_copy_observes_for_itself() -> None:
    recommender = Recommender(ensemble(EARLY))
    other, before = copy.copy(recommender), scores(recommender)
    other.observe(CLICKS)
    torch.testing.assert_close(scores(recommender), before)
    torch.testing.assert_close(scores(other), scores(Recommender(ensemble(DATA))), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no click"):
        recommender.user(CLICKS["user"][0])


def test_users_are_known_by_their_clicks() -> None:
    recommender = Recommender(ensemble(EARLY))
    seen: dict[str, list[str]] = {}
    for first in range(0, len(LATE), 7):
        recommender.observe(part(first, first + 7))
        for user, item in zip(CLICKS["user"][first : first + 7], CLICKS["item"][first : first + 7], strict=True):
            seen.setdefault(user, []).append(item)
    for user, history in seen.items():
        assert recommender.user(user).history == tuple(history)
    name = max(seen, key=lambda user: len(seen[user]))
    last = max(t for u, t in zip(CLICKS["user"], CLICKS["time"], strict=True) if u == name)
    at = CLICKS["time"][-1]
    expected = recommender.adapt(seen[name], at=at, last=last).weights
    found = recommender.user(name).weights
    assert found == pytest.approx(expected, abs=1e-5) and len(set(found.values())) > 1


pd = imported("pandas")


@pytest.mark.parametrize("kind", ["polars", "arrays", *(["pandas"] if pd is not None else [])])
def test_clicks_come_in_any_frame(kind: str) -> None:
    made: dict[str, Any] = {
        "pandas": lambda: pd.DataFrame(CLICKS, index=np.arange(len(LATE))[::-1]),
        "polars": lambda: pl.DataFrame(CLICKS),
        "arrays": lambda: {name: np.asarray(column) for name, column in CLICKS.items()},
    }
    recommender = Recommender(ensemble(EARLY))
    recommender.observe(made[kind]())
    torch.testing.assert_close(scores(recommender), scores(Recommender(ensemble(DATA))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"item": ["item3", "nope"]}, "nope"),
        ({"item": ["item3"]}, "2, 1, 2"),
        ({"item": ["item3", 5]}, "5"),
        ({"user": ["u", None]}, "None"),
        ({"time": [2e6, 1.0]}, "'v' clicked at 1.0"),
        ({"time": [2e6, float("nan")]}, "nan"),
        ({"time": ["today", "now"]}, "today"),
    ],
)
def test_bad_clicks_are_named_and_change_nothing(change: dict[str, list[Any]], named: str) -> None:
    recommender = Recommender(ensemble(EARLY))
    before = scores(recommender)
    good = {"user": ["u", "v"], "item": ["item3", "item4"], "time": [2e6, 2e6 + 1]}
    with pytest.raises(ValueError, match=named):
        recommender.observe({**good, **change})
    with pytest.raises(ValueError, match="'time'"):
        recommender.observe({name: column for name, column in good.items() if name != "time"})
    torch.testing.assert_close(scores(recommender), before)
    with pytest.raises(ValueError, match="'u'"):
        recommender.user("u")
    assert recommender.observe(good).new_users == ("u", "v")
    assert recommender.observe({name: [] for name in good}).clicks == 0


def test_what_one_part_refuses_leaves_no_trace_in_the_others(tmp_path: Path) -> None:
    save(ensemble(EARLY), tmp_path / "model.safetensors")  # popularity is saved without its users: any id begins it
    refused, plain = (Recommender(load(tmp_path / "model.safetensors")) for _ in range(2))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'transitions'.* 7 "):
            refused.observe({"user": [7], "item": ["item3"], "time": [CLICKS["time"][0]]})
    for recommender in (refused, plain):
        recommender.observe(CLICKS)
    assert (scores(refused) == scores(plain)).all()


def test_the_last_clicks_of_each_user_are_those_of_a_loop() -> None:
    histories, seen, until = Histories(3, (200, 10)), dict[str, tuple[list[int], float]](), -np.inf
    for first in range(0, len(LATE), 11):
        rows = np.sort(ORDER[first : first + 11])
        some = np.isin(np.arange(len(LATE)), rows)
        known, done = set(seen), histories.extend(filter_interactions(LATE, some), 4e3, id)
        for row in rows:
            name = LATE.users.ids[LATE.user[row] - 1]
            own = [*seen.get(name, ([], 0.0))[0], int(LATE.item[row])]
            seen[name] = own[-3:], float(LATE.time[row])
            until = max(until, float(LATE.time[row]))
        assert (done.clicks, done.users) == (len(rows), len(np.unique(LATE.user[rows]))) and histories.until == until
        assert sorted(done.new_users) == sorted(set(seen) - known)
    assert len(histories) == len(seen)
    for name, (codes, last) in seen.items():
        assert histories.of(name)[0].tolist() == codes and histories.of(name)[1] == last


def test_users_who_ask_at_different_times_get_what_each_would_get_alone() -> None:
    recommender = Recommender(ensemble(EARLY))
    now = float(EARLY.time.max())
    at, last = [now - 300.0, now - 20.0, now, now + 50.0], [now - 900.0, now - 20.0, now - 1.0, now - 70.0]
    together = recommender.adapt(HISTORIES, at=at, last=last)
    for user, own in enumerate(HISTORIES):
        alone = recommender.adapt([own], at=at[user], last=last[user])
        torch.testing.assert_close(together[user].scores, alone[0].scores, rtol=1e-5, atol=1e-5)
    assert len({float(user.scores[5]) for user in together}) == len(HISTORIES)
    for wrong in ([now], [[now] * 4], [now, now, now, float("nan")]):
        with pytest.raises(ValueError, match="at must be"):
            recommender.adapt(HISTORIES, at=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_flood_of_one_user_counts_as_a_day_of_an_eager_one(size: int) -> None:
    draw, day = np.random.default_rng(0), DAY * DATA.second
    time = np.sort(draw.uniform(LAST + 1, LAST + 3 * day, 1_500))
    user, item = draw.choice(["bot", "ann", "bob"], 1_500, p=[0.8, 0.1, 0.1]), draw.choice(["item3", "item4"], 1_500)
    by_day, kept = Counter[tuple[Any, ...]](), list[int]()
    for row, keys in enumerate(zip((time // day).tolist(), user.tolist(), item.tolist(), strict=True)):
        by_day.update([keys, keys[:2]])
        if by_day[keys] <= 10 and by_day[keys[:2]] <= 200:
            kept.append(row)
    told, wanted = Recommender(ensemble(DATA)), Recommender(ensemble(DATA))
    clicks = {"user": user, "item": item, "time": time}
    done = [
        told.observe({name: column[first : first + size] for name, column in clicks.items()})
        for first in range(0, len(time), size)
    ]
    wanted.observe({name: column[kept] for name, column in clicks.items()})
    assert sum(one.not_counted for one in done) == len(time) - len(kept) > 1_000
    assert torch.equal(scores(told), scores(wanted))
    assert told.user("bot").history[-1] == item[user == "bot"][-1]  # a user's own history has them all
