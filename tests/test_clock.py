"""The unit of times is told from them, and days are days in every unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarec.data import Catalog, Dataset, EpisodeSampler, Vocabulary, load_atomic, split_by_time, split_time
from metarec.datasets import movietweetings, planted
from metarec.recipes import LivePopularity, Popularity, Transitions, mml_blend
from metarec.recipes.components import Setup, of_groups

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY = 86_400


@pytest.fixture(scope="module")
def tweets() -> Dataset:
    return movietweetings()


def counted(group: str, setup: Setup) -> dict[str, Any]:
    return {name: model for part in of_groups(group) for name, model in part.fit(setup).items()}


def timed(*times: float, kind: type = np.int64) -> Dataset:
    n, people, catalog = len(times), Vocabulary(["u"], "user"), Catalog(Vocabulary("ab"))
    item = np.arange(n) % 2 + 1
    return Dataset(people, catalog, np.ones(n, dtype=np.int64), item, np.array(times, dtype=kind), np.arange(3) > 0)


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_counted_in_days_does_not_depend_on_the_unit(tweets: Dataset, unit: str) -> None:
    data = replace(tweets, time=tweets.time * UNITS[unit])
    up, down = split_by_time(data, split_time(data))
    for part in (data, up, down):
        assert part.days(2) == 2 * DAY * UNITS[unit] and part.second == UNITS[unit]
    seconds, _ = split_by_time(tweets, split_time(tweets))
    recent = counted("counts", Setup(up))["popularity, recent"]
    since = seconds.time >= seconds.time.max() - 90 * DAY
    assert recent.counts.tolist() == np.bincount(seconds.item[since], minlength=up.catalog.size).tolist()
    live, plain = (counted("live", Setup(d, live=d)) for d in (data, tweets))
    at = int(tweets.time[len(tweets) // 2])
    popular, same = live["popularity, live decay"], plain["popularity, live decay"]
    expected = same.counts(torch.tensor([at]))
    torch.testing.assert_close(popular.counts(torch.tensor([at * UNITS[unit]])), expected, rtol=1e-4, atol=1e-6)
    assert live["transitions, live"].half_life == 3 * DAY * UNITS[unit]
    for batch, other in zip(
        *(EpisodeSampler(d, part="test").epoch(0) for d in (down, split_by_time(tweets, split_time(tweets))[1])),
        strict=True,
    ):
        torch.testing.assert_close(batch.query.gap.double(), other.query.gap.double())  # type: ignore[union-attr]


def test_days_as_the_times_themselves() -> None:
    assert timed(15_763, 15_764).days(3) == 3
    assert timed(15_763.25, 15_764.5, kind=np.float64).days(3) == 3
    assert timed(15_763.25, 15_764.5, kind=np.float64).second == pytest.approx(1 / DAY)


@pytest.mark.parametrize("times", [(0, 1, 2), (0, 20_000, 40_000), (20_130_228, 20_130_301), (2013, 2014), (-5, 3)])
def test_what_is_no_time_of_the_calendar_has_no_days(times: tuple[int, ...]) -> None:
    data = timed(*times)
    with pytest.raises(ValueError, match=rf"a day.*\? Its times, from {times[0]} to {times[-1]}, are no unix"):
        data.days(1)
    assert data.second == 1.0
    assert data.days(2, 10) == replace(data, day=10.0).days(2) == 20
    with pytest.raises(ValueError, match="a day"):
        mml_blend(data)


def test_a_few_odd_times_change_nothing() -> None:
    assert timed(-1, 0, *range(1_600_000_000_000, 1_600_000_000_009)).days(1) == DAY * 1000


def test_a_day_that_the_times_contradict_is_warned_of(tweets: Dataset) -> None:
    data = replace(tweets, time=tweets.time * 1000)
    with pytest.warns(UserWarning, match=r"day=86400 .*times.* 8\.64e\+07 units"):
        assert data.days(1, 86_400) == 86_400
    with pytest.raises(ValueError, match=r"day .*units.* 0, got -1"):
        replace(data, day=-1.0)


def test_rows_in_order_have_no_days_on_either_side(tmp_path: Path) -> None:
    rows = [f"u{row // 50:04}\ti{row % 9}" for row in range(60_000)]
    (tmp_path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token", *rows]))
    data = load_atomic(tmp_path)
    for part in (data, *split_by_time(data, split_time(data, 0.5))):
        with pytest.raises(ValueError, match="a day"):
            part.days(1)


def test_a_planted_day_is_a_250th_of_upstream() -> None:
    data = planted(users=20, items=30)
    assert split_by_time(data, 1_000_000)[0].days(250) == 1_000_000


def file(path: Path, *times: object) -> Path:
    rows = [f"u{row}\ta\t{time}" for row, time in enumerate(times)]
    (path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token\ttime:float", *rows]))
    return path


def test_two_units_in_one_column_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, *range(1_600_000_000, 1_600_000_005), 1_600_000_000_000)
    told = r"d\.inter: column 'time': .*seconds.* 1 .*such.* 1600000000000 \(milliseconds\)"
    with pytest.raises(ValueError, match=told):
        load_atomic(path)


def test_two_units_half_and_half_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, *range(1_600_000_000, 1_600_000_005), *range(1_600_000_000_000, 1_600_000_000_005))
    with pytest.raises(ValueError, match=r"most .*milliseconds.* 5 .*such.* 1600000000 \(seconds"):
        load_atomic(path)


@pytest.mark.parametrize("odd", [0, -1, 99])
def test_times_outside_the_calendar_are_said(tmp_path: Path, odd: int) -> None:
    path = file(tmp_path, *range(1_600_000_000, 1_600_000_005), odd)
    with pytest.warns(
        UserWarning, match=rf"column 'time': .* but 1 lie outside 1973 to 2103, such as {odd}; they are tak"
    ):
        assert odd in load_atomic(path).time


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.uint64, np.bool_, "datetime64[s]"])
def test_times_of_a_type_that_cannot_hold_them_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match=r"data: expected times as int64 or float64, got"):
        replace(timed(1, 2), time=np.array([1, 2]).astype(kind))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_times_must_be_finite(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"data: .*interaction 1 is"):
        timed(1.5, wrong, kind=np.float64)


def test_someone_served_now_is_asked_after_all_clicks_in_nanoseconds() -> None:
    times = [1_600_000_000 * 10**9 + at for at in (0, 100, 200, 300)]  # closer than float64 can tell apart
    data = timed(*times)
    query = next(EpisodeSampler(data, part="serving").epoch(0)).query
    asked = replace(query, time=None)
    popular = LivePopularity(data, window=data.days(1))
    known = popular.adapt(asked)(asked).scores[0, 0].exp() - 0.5
    torch.testing.assert_close(known, Popularity(data).counts)
    moves, all_moves = Transitions(data, half_life=data.days(1), live=True), Transitions(data)
    torch.testing.assert_close(moves.adapt(asked)(asked).scores, all_moves.adapt(asked)(asked).scores)
