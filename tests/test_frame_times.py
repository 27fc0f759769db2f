"""Times of every form in frames, against the datetimes of Python."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
import torch

from metarec import Recommender
from metarec.data import Dataset
from metarec.recipes import LivePopularity

MOMENTS = [datetime(2024, 3, 31, 0, 59, 58) + timedelta(hours=7 * n, seconds=n) for n in range(12)]
UNITS = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def of_times(times: pl.Series) -> Dataset:
    """One user, who clicked another item each time."""
    count = len(times)
    return Dataset.from_frame(
        pl.DataFrame({"user": ["u"] * count, "item": [f"i{n:03}" for n in range(count)], "time": times})
    )


def seconds(moments: list[datetime]) -> list[int]:
    return [int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) for moment in moments]


@pytest.mark.parametrize("unit", UNITS)
def test_datetimes_keep_their_unit(unit: Any) -> None:
    data = of_times(pl.Series(MOMENTS, dtype=pl.Datetime(unit)))
    assert data.time.dtype == np.int64
    assert data.time.tolist() == [second * UNITS[unit] for second in seconds(MOMENTS)]
    assert data.day == data.days(1) == 86_400 * UNITS[unit] and data.second == UNITS[unit]


def test_datetimes_of_a_zone_are_those_of_utc() -> None:
    local = [moment.replace(tzinfo=ZoneInfo("Europe/Vienna")) for moment in MOMENTS]
    data = of_times(pl.Series(local, dtype=pl.Datetime("us", "Europe/Vienna")))
    assert data.time.tolist() == [second * 1_000_000 for second in seconds(local)]


def test_dates_are_days_even_before_the_calendar_begins() -> None:
    dates = [date(1950, 1, 1) + timedelta(days=9 * n) for n in range(5)]
    data = of_times(pl.Series(dates))
    assert data.time.tolist() == [(day - date(1970, 1, 1)).days for day in dates]
    assert data.day == data.days(1) == 1


ISO: dict[str, Any] = {
    "iso": lambda moment: moment.isoformat(),
    "blank": lambda moment: moment.isoformat(" "),
    "zulu": lambda moment: f"{moment.isoformat()}Z",
    "east": lambda moment: moment.replace(tzinfo=timezone(timedelta(hours=5, minutes=30))).isoformat(),
    "west": lambda moment: moment.replace(tzinfo=timezone(timedelta(hours=-3))).isoformat().replace("-03:00", "-0300"),
    "fraction": lambda moment: f"{moment.isoformat()}.000",
    "minutes": lambda moment: moment.isoformat(timespec="minutes"),
    "day": lambda moment: moment.date().isoformat(),
    "blanks around": lambda moment: f" {moment.isoformat()} ",
}


@pytest.mark.parametrize("form", ISO)
def test_iso_text_is_seconds(form: str) -> None:
    text = [ISO[form](moment) for moment in MOMENTS]
    data = of_times(pl.Series(text))
    assert data.time.tolist() == seconds([datetime.fromisoformat(one.strip()) for one in text])
    assert data.day == data.days(1) == 86_400


def test_forms_of_iso_text_may_be_mixed_and_fractions_are_kept() -> None:
    text = ["2024-05-01", "2024-05-01T12:00:00.25+02:00", "2024-05-01 11:00", "2024-05-01T11:00:00.5Z"]
    data = of_times(pl.Series(text))
    expected = [datetime.fromisoformat(one) for one in text]
    assert data.time.tolist() == [round(one.replace(tzinfo=one.tzinfo or UTC).timestamp() * 1e6) for one in expected]
    assert data.day == 86_400e6


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000, 1_000_000_000])
@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.String, pl.Decimal(38, 0)])
def test_numbers_are_taken_as_they_are_and_tell_their_unit(scale: int, kind: Any) -> None:
    numbers = [second * scale for second in seconds(MOMENTS)]
    data = of_times(pl.Series(numbers).cast(kind))
    assert data.time.tolist() == numbers and data.time.dtype == np.int64
    assert data.day is None and data.days(1) == 86_400 * scale


def test_fractions_are_kept_and_whole_floats_become_whole_numbers() -> None:
    assert of_times(pl.Series([1.6e9, 1.7e9])).time.dtype == np.int64
    assert of_times(pl.Series([1.6e9, 1.7e9 + 0.5])).time.tolist() == [1.6e9, 1.7e9 + 0.5]


def test_a_column_of_datetimes_is_found_by_its_values() -> None:
    frame = pl.DataFrame({"user": [1, 1], "item": ["b", "a"], "x": [datetime(2024, 1, 2), datetime(2024, 1, 1)]})
    with pytest.warns(UserWarning, match="'x' is taken"):
        assert Dataset.from_frame(frame).item.tolist() == [1, 2]


FORMS: dict[str, Any] = {
    "datetimes": lambda moments: moments,
    "of a zone": lambda moments: [m.replace(tzinfo=UTC).astimezone(ZoneInfo("Asia/Tokyo")) for m in moments],
    "polars": lambda moments: pl.Series(moments, dtype=pl.Datetime("ns")),
    "numpy": lambda moments: np.array(moments, dtype="datetime64[ns]"),
    "iso": lambda moments: [moment.isoformat() for moment in moments],
    "zulu": lambda moments: [f"{moment.isoformat()}Z" for moment in moments],
}


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("form", FORMS)
def test_clicks_are_observed_at_datetimes_in_the_unit_of_the_data(unit: Any, form: str) -> None:
    data = of_times(pl.Series(MOMENTS, dtype=pl.Datetime(unit)))
    late = [MOMENTS[-1], MOMENTS[-1] + timedelta(seconds=1)]
    clicks = {"user": ["u", "v"], "item": ["i001", "i002"]}
    models = [Recommender(LivePopularity(data, window=data.days(9))) for _ in range(2)]
    models[0].observe({**clicks, "time": FORMS[form](late)})
    models[1].observe({**clicks, "time": [second * UNITS[unit] for second in seconds(late)]})
    scores = [model.adapt(["i003"]).scores for model in models]
    assert torch.equal(*scores) and models[0]._histories.until == models[1]._histories.until


def test_clicks_are_observed_on_dates() -> None:
    dates = [date(2024, 5, 1) + timedelta(days=n) for n in range(5)]
    recommender = Recommender(LivePopularity(of_times(pl.Series(dates)), window=9.0))
    recommender.observe({"user": ["u"], "item": ["i001"], "time": [date(2024, 5, 9)]})
    assert recommender._histories.until == pytest.approx((date(2024, 5, 9) - date(1970, 1, 1)).days)
    with pytest.raises(ValueError, match="goes backwards"):
        recommender.observe({"user": ["u"], "item": ["i001"], "time": ["2024-05-08"]})
    with pytest.raises(ValueError, match="2024-05-40"):
        recommender.observe({"user": ["u"], "item": ["i001"], "time": ["2024-05-40"]})
