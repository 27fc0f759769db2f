"""The prequential protocol: nothing looks ahead, and a frozen model reads as it is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarec import Dataset, Model, evaluate
from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.nn.record import record_of
from metarec.recipes import Ensemble, LivePopularity, Popularity, sasrec
from metarec.scoring import DenseScores, UserState
from metarec.streaming import StreamReport, counted, evaluate_stream, frozen, learned, plot_stream, retrained
from metarec.types import Examples

DATA = planted(users=120, items=40, noise=0.3)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
DAY = 86_400 * DATA.second


def live() -> LivePopularity:
    return LivePopularity(UP, window=20 * DAY)


def learner() -> Any:
    made = sasrec.build(UP, ("id", "text"), dim=8, layers=1)
    for _ in sasrec.train(made, UP, epochs=1):
        pass
    return made


def test_a_frozen_model_reads_as_it_is_evaluated() -> None:
    for model in (Popularity(UP), learner(), Ensemble({"a": Popularity(UP), "b": learner()}, UP)):
        stream, whole = evaluate_stream(model, DATA), evaluate(model, DOWN, part="serving")
        assert np.array_equal(stream.report.user, whole.user)
        assert np.array_equal(stream.report.rank, whole.rank)
        assert np.array_equal(stream.report.is_cold, whole.is_cold)
        assert stream.report.information == whole.information == "upstream"


def test_each_click_is_ranked_by_counts_of_the_periods_before_it() -> None:
    found = evaluate_stream(live(), DATA, start=PLANTED_SPLIT, step=counted, every=5 * DAY, exclude_seen=False)
    assert found.report.information == "live"
    for row, user in enumerate(found.report.user.tolist()):
        own = np.flatnonzero(DATA.user == user)
        when, target = DATA.time[own[-1]], DATA.item[own[-1]]
        period = int((when - PLANTED_SPLIT - 1) // (5 * DAY))
        assert found.period[row] == period
        edge = PLANTED_SPLIT + 1 + period * 5 * DAY
        within = stream_of(DATA, edge) & (DATA.time >= when - 20 * DAY)
        counts = np.bincount(DATA.item[within], minlength=DATA.catalog.size)[1:]
        mine = counts[target - 1]
        assert found.report.rank[row] == 1 + (counts > mine).sum() + ((counts == mine).sum() - 1) / 2


def stream_of(data: Dataset, edge: float) -> Any:
    """Clicks that a model fitted upstream and told until a time knows: those of a split have none of late users."""
    mine = np.isin(np.arange(len(data)), np.flatnonzero(np.isin(data.user, UP.user_codes)))
    return (data.time < edge) & (mine | (data.time > PLANTED_SPLIT))


STEPS = {
    "frozen": frozen,
    "counted": counted,
    "learned": learned(),
    "retrained": retrained(lambda data: Popularity(data)),
}


@pytest.mark.parametrize("way", STEPS)
def test_later_clicks_change_no_earlier_rank(way: str) -> None:
    """The clock: what comes after a moment is another world, and all that was ranked before it stays."""
    moment = PLANTED_SPLIT + 100 * DAY
    late = DATA.time >= moment
    rng = np.random.default_rng(0)
    other = replace(DATA, item=np.where(late, rng.permutation(DATA.item), DATA.item))
    model = Ensemble({"live": live(), "sasrec": learner()}, UP)
    one, two = (
        evaluate_stream(model, data, step=STEPS[way], every=10 * DAY, observe_every=DAY) for data in (DATA, other)
    )
    asked = [np.array([DATA.time[DATA.user == user].max() < moment for user in r.report.user]) for r in (one, two)]
    assert 3 < asked[0].sum() < len(asked[0])
    assert np.array_equal(one.report.rank[asked[0]], two.report.rank[asked[1]])
    assert not np.array_equal(one.report.rank[~asked[0]][:20], two.report.rank[~asked[1]][:20])


def test_the_steps_are_given_each_click_once_and_in_time() -> None:
    given: list[Dataset] = []

    def step(model: Model, clicks: Dataset, before: Dataset) -> Model:
        assert not len(before) or before.time.max() < clicks.time.min()
        assert len(before) == (DATA.time < clicks.time.min()).sum()
        given.append(clicks)
        return model

    found = evaluate_stream(Popularity(UP), DATA, start=PLANTED_SPLIT, step=step)
    times = np.concatenate([clicks.time for clicks in given])
    assert sorted(times.tolist()) == sorted(DATA.time[DATA.time > PLANTED_SPLIT].tolist())
    assert all(np.ptp(clicks.time) < DAY for clicks in given)
    assert found.clicks == len(times)


def test_a_model_that_looked_ahead_is_refused() -> None:
    def ahead(model: Model, clicks: Dataset, before: Dataset) -> Model:
        return Popularity(DATA)

    with pytest.raises(ValueError, match=f"Popularity.*{float(DATA.time.max())}"):
        evaluate_stream(Popularity(UP), DATA, start=PLANTED_SPLIT, step=ahead)


class Counting(Model):
    """Counts that do not look at the time of what they are asked: whatever they were told, they use."""

    information = "live"

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        self.attach(UP)

    def item_mask(self) -> torch.Tensor:
        return torch.arange(UP.catalog.size) > 0

    def encode(self, support: Examples, query: Examples, **how: Any) -> UserState:
        assert query.time is not None
        known = (DATA.time[DATA.time > PLANTED_SPLIT] < float(query.time.min())).sum()
        assert self.seen <= known
        return UserState({"active": torch.ones(query.target.numel()) > 0})

    def scores(self, state: UserState) -> DenseScores:
        return DenseScores(torch.zeros(len(state), UP.catalog.size), self.item_mask())

    def observe(self, clicks: Dataset) -> Counting:
        self.seen += len(clicks)
        return self


@pytest.mark.parametrize("often", [None, 1.0, 0.05])
def test_no_model_is_told_what_is_still_to_be_asked(often: float | None) -> None:
    own = Counting()
    models = []
    evaluate_stream(
        own,
        DATA,
        start=PLANTED_SPLIT,
        step=counted,
        every=2 * DAY,
        observe_every=None if often is None else often * DAY,
        after=lambda period, model: models.append(model),
    )
    assert own.seen == 0
    assert [m.seen for m in models][-1] == (DATA.time > PLANTED_SPLIT).sum()


def test_known_users_are_those_who_had_clicked_before() -> None:
    place = np.arange(len(DATA)) - np.repeat(DATA.offsets[:-1], np.diff(DATA.offsets))
    middle = (DATA.user % 3 == 0) & (place > 4)  # they go on after a pause
    late = replace(DATA, time=DATA.time + np.where(middle, PLANTED_SPLIT, 0))
    up, _ = split_by_time(late, at=PLANTED_SPLIT)
    first, last = (np.array([op(late.time[late.user == u]) for u in late.user_codes]) for op in (np.min, np.max))
    for users, is_cold in (("cold", True), ("known", False)):
        found = evaluate_stream(Popularity(up), late, start=PLANTED_SPLIT, users=users, exclude_seen=False)  # type: ignore[arg-type]
        wanted = late.user_codes[(last > PLANTED_SPLIT) & ((first > PLANTED_SPLIT) == is_cold)]
        assert found.report.user.tolist() == wanted.tolist()
    assert record_of(Popularity(up)).fitted_until <= PLANTED_SPLIT  # type: ignore[operator]


def test_retraining_is_a_fit_on_all_clicks_until_then() -> None:
    fitted: list[Dataset] = []

    def fit(data: Dataset) -> Model:
        fitted.append(data)
        return Popularity(data)

    evaluate_stream(Popularity(UP), DATA, start=PLANTED_SPLIT, step=retrained(fit), every=40 * DAY)
    for data in fitted:
        rows = DATA.time <= data.time.max()
        assert np.array_equal(data.item, DATA.item[rows])
        assert np.array_equal(np.flatnonzero(data.warm), np.unique(DATA.item[rows]))


def test_the_curve_is_the_mean_of_each_group_of_periods(tmp_path: Path) -> None:
    found = evaluate_stream(live(), DATA, start=PLANTED_SPLIT, step=counted)
    values = found.report.values("ndcg@10")
    counts = np.bincount(found.period // 7)
    whole = sum(
        point.mean * count for (_, point), count in zip(found.curve(periods=7), counts[counts > 0], strict=True)
    )
    assert whole / len(values) == pytest.approx(values.mean())
    told = found.to_dict(periods=7)
    assert told["mean"] == found.report.metrics["ndcg@10"].mean and len(told["curve"]) == len(found.curve(periods=7))
    plot_stream(tmp_path / "a.png", {"counted": told, "again": told}, day=DAY)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="recall@5"):
        plot_stream(tmp_path / "b.png", {"a": told, "b": found.to_dict("recall@5")})
    assert isinstance(found, StreamReport) and set(found.seconds) == {"step", "observe", "rank"}


def test_what_cannot_be_streamed_is_refused() -> None:
    for wrong in ({"every": 0.0}, {"observe_every": -1.0}, {"users": "all"}, {"start": 1e9}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))[:3]):
            evaluate_stream(Popularity(UP), DATA, **{"start": PLANTED_SPLIT, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start="):
        evaluate_stream(Counting(), DATA)
