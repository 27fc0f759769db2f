"""Tables whose ids do not meet, and values of several types in one column: named, with the row."""

from __future__ import annotations

import datetime
import warnings
from typing import Any

import polars as pl
import pytest

from metarec.data import Dataset

CLICKS = pl.DataFrame({"user": ["u", "u", "v", "w"], "item": [1, 2, 1, 3], "time": [1, 2, 3, 4]})
ITEMS = pl.DataFrame({"item": [1, 2, 4, 5], "maker": ["x", "x", "y", "y"], "price": [1.0, 2.0, None, 3.0]})
USERS = pl.DataFrame({"user": ["u", "w", "z"], "city": ["a", "a", "b"]})


def objects(values: list[Any]) -> pl.Series:
    return pl.Series(values, dtype=pl.Object)


def test_a_table_of_other_items_is_warned_of_and_one_in_common_is_enough() -> None:
    apart = ITEMS.with_columns(pl.col("item") + 100)
    with pytest.warns(UserWarning, match=r"items.*4 rows.*'101'.*\[1, 2, 3\]"):
        Dataset.from_frame(CLICKS, apart, attributes=["maker"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_frame(CLICKS, apart.with_columns(item=pl.Series([103, 104, 3, 106])), attributes=["maker"])
        Dataset.from_frame(CLICKS, apart.head(0))


def test_a_table_of_other_users_is_warned_of() -> None:
    with (
        pytest.warns(UserWarning, match=r"users.*3 rows.*'u1'.*'v'"),
        pytest.raises(ValueError, match=r"users.*'city'"),
    ):
        Dataset.from_frame(CLICKS, users=USERS.with_columns(pl.col("user") + "1"), profile=["city"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dataset.from_frame(CLICKS, users=USERS, profile=["city"])


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("price", [1.0, 2.0, float("inf"), None], "items: row 2, column 'price': 'inf'"),
        ("maker", objects(["x", "x", 7, "y"]), "items: row 2, column 'maker': '7' is int, but 'x' is str"),
        ("maker", objects([{1}, {2}, {1}, {2}]), "items: row 0, column 'maker'.* is set"),
    ],
)
def test_attributes_that_cannot_be_are_named_by_row(column: str, values: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Dataset.from_frame(CLICKS, ITEMS.with_columns(pl.Series(column, values)), attributes=[column])


def test_times_of_several_types_are_named_by_row() -> None:
    times = objects(["2024-05-01", "2024-05-02", datetime.date(2024, 5, 3), "2024-05-04"])
    with pytest.raises(ValueError, match="clicks: row 2, column 'time': '2024-05-03' is date, but '2024-05-01' is str"):
        Dataset.from_frame(CLICKS.with_columns(time=times), time="time")
