"""Frames that are refused, with the frame, the column, the row and the value named; and odd ones that are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from frame_worlds import by_loop, codes_of, frame_of, random_rows
from metarec.data import Dataset
from optional import imported

GOOD = frame_of(random_rows(1, numbers=True))
TEXT = frame_of(random_rows(1, numbers=False))
pd = imported("pandas")


def at(row: int, column: str, value: Any, frame: pl.DataFrame = GOOD) -> pl.DataFrame:
    """A frame with one other value, in a column of one type."""
    values = frame.cast({column: pl.Float64})[column].to_list() if isinstance(value, float) else frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values))


def objects(row: int, column: str, value: Any) -> pl.DataFrame:
    """A frame with one other value, in a column of several types."""
    values = GOOD[column].to_list()
    values[row] = value
    return GOOD.with_columns(pl.Series(column, values, dtype=pl.Object))


BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no user": (lambda: GOOD.rename({"user_id": "wer"}), {}, r"clicks: no column .*user_id.*'wer', 'item_id'.*user="),
    "no item": (lambda: GOOD.rename({"item_id": "was"}), {}, r"clicks: no column .* item.*'was'.*item="),
    "two users": (
        lambda: GOOD.with_columns(pl.lit(1).alias("userId")),
        {},
        r"more than one column may be the user: \['user_id', 'userId'\].*user='user_id'",
    ),
    "two items": (
        lambda: GOOD.rename({"item_id": "movieId"}).with_columns(pl.lit(1).alias("asin")),
        {},
        r"more than one .* item: \['movieId', 'asin'\]",
    ),
    "a column that is not there": (lambda: GOOD, {"user": "wer"}, r"clicks: no column 'wer'; it has \['user_id', "),
    "a time that is not there": (lambda: GOOD, {"time": "wann"}, r"clicks: no column 'wann'; it has \['user_id', "),
    "an ignored column that is not there": (lambda: GOOD, {"ignore": ["x"]}, r"clicks: no column 'x'; it has"),
    "no rows": (lambda: GOOD.head(0), {}, r"clicks: no rows, only the columns \['user_id'"),
    "no columns": (pl.DataFrame, {}, r"clicks: no column .* user.*\[\]"),
    "one fraction of a user": (lambda: at(7, "user_id", 1.5), {}, r"row 7, column 'user_id': '1.5' is not a whole"),
    "a user that is true": (
        lambda: GOOD.with_columns(pl.lit(value=True).alias("user_id")),
        {},
        r"'user_id' is Boolean",
    ),
    "users in bytes": (lambda: TEXT.cast({"user_id": pl.Binary}), {}, r"'user_id' is Binary; ids are text or whole"),
    "items in lists": (lambda: TEXT.with_columns(pl.concat_list("item_id")), {"item": "item_id"}, r"'item_id' is List"),
    "text among numbers": (lambda: objects(9, "user_id", "ann"), {}, r"row 9, column 'user_id': 'ann' is str.*int"),
    "an endless user": (lambda: at(3, "user_id", float("inf")), {}, r"row 3, column 'user_id': 'inf' is not a whole"),
    "users that are missing": (
        lambda: GOOD.with_columns(pl.lit(None).alias("user_id")),
        {},
        r"in each of 400 rows something is missing: .*'user_id': 400",
    ),
    "a time in another form": (
        lambda: at(5, "timestamp", "May 1st", _iso()),
        {},
        r"'timestamp' \(String\) looks like a",
    ),
    "one that is named": (
        lambda: at(5, "timestamp", "May 1st", _iso()),
        {"time": "timestamp"},
        r"clicks: row 5, column 'timestamp': 'May 1st' is no time; expected a date.*2024-05-01",
    ),
    "no time among numbers": (
        lambda: (
            pl.concat([GOOD.cast({"timestamp": pl.String})] * 4)
            .with_row_index("n")
            .with_columns(pl.when(pl.col("n") == 1500).then(pl.lit("later")).otherwise("timestamp").alias("timestamp"))
            .drop("n")
        ),
        {},
        r"row 1500, column 'timestamp': 'later' is no time",
    ),
    "an endless time": (lambda: at(2, "timestamp", float("inf")), {}, r"row 2, column 'timestamp': 'inf' is not a fin"),
    "times of two units": (lambda: at(2, "timestamp", 1_600_000_000_000), {}, r"unix seconds, but 1 are not.*16000000"),
    "a length of time": (
        lambda: GOOD.with_columns(pl.duration(seconds="timestamp").alias("timestamp")),
        {"time": "timestamp"},
        r"'timestamp' is Duration.*no time",
    ),
    "two times": (
        lambda: GOOD.with_columns(pl.col("timestamp").alias("event_time")),
        {},
        r"more than one column looks like the time: 'timestamp', 'event_time'; pass Dataset.from_frame\(..., time=",
    ),
    "lists of clicks": (
        lambda: GOOD.with_columns(pl.lit([1, 2]).alias("item_history")),
        {},
        r"'item_history' \(List.*looks like a list of clicks.*ignore",
    ),
    "no row is a click": (
        lambda: GOOD.with_columns(pl.lit(3).alias("rating")),
        {"positive": {"rating": 4}},
        r"clicks: no row is a click.*\{'rating': 3",
    ),
    "a rating that is no number": (
        lambda: TEXT.with_columns(pl.lit("good").alias("rating")),
        {"positive": {"rating": 4}},
        r"row 0, column 'rating': 'good' is not a finite number",
    ),
    "items twice": (
        lambda: GOOD,
        {"items": pl.DataFrame({"item_id": [5, 4, 4]})},
        r"items: row 2, column 'item_id': '4'",
    ),
    "items without ids": (lambda: GOOD, {"items": pl.DataFrame({"x": [5]})}, r"items: no column .* item.*\['x'\]"),
    "items of another type": (
        lambda: GOOD,
        {"items": pl.DataFrame({"item_id": ["4"]})},
        r"items: .*text.*clicks.*whole",
    ),
    "no such title": (lambda: GOOD, {"items": pl.DataFrame({"item_id": [4]}), "title": "t"}, r"items: no column 't'"),
    "an array without items": (
        lambda: GOOD,
        {"features": {"t": np.ones((3, 2))}},
        r"features\['t'\].*no items are given",
    ),
    "an array of too few rows": (
        lambda: GOOD,
        {"items": pl.DataFrame({"item_id": [4, 11]}), "features": {"t": np.ones((3, 2))}},
        r"features\['t'\].*\(3, 2\).*2 rows",
    ),
    "vectors of two lengths": (
        lambda: GOOD,
        {"features": {"t": {4: [1.0, 2.0], 11: [1.0]}}},
        r"features\['t'\]: item 11 has a vector of shape \(1,\)",
    ),
    "lists of two lengths": (
        lambda: GOOD,
        {"features": {"t": pl.DataFrame({"item_id": [4, 11], "v": [[1.0, 2.0], [1.0]]})}},
        r"row 1, column 'item_id': '11' has a vector of 1 numbers, expected 2",
    ),
    "a vector that is not finite": (
        lambda: GOOD,
        {"features": {"t": {4: [1.0, float("nan")]}}},
        r"features\['t'\]: row 0 \(item '4'\), column 1: nan",
    ),
    "vectors of other items": (lambda: GOOD, {"features": {"t": {"x": [1.0]}}}, r"all 1 rows are of items that"),
    "a frame without vectors": (
        lambda: GOOD,
        {"features": {"t": pl.DataFrame({"item_id": [4], "name": ["x"]})}},
        r"features\['t'\]: expected one column of vectors, or columns of numbers, beside 'item_id'",
    ),
    "words for vectors": (lambda: GOOD, {"features": {"t": {4: ["x"]}}}, r"features\['t'\]: item 4: expected numbers"),
    "another file": (lambda: "clicks.xlsx", {}, r"clicks.xlsx: no such file"),
}


def _iso() -> pl.DataFrame:
    return GOOD.with_columns(pl.from_epoch("timestamp").dt.to_string("%Y-%m-%d"))


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    make, options, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        Dataset.from_frame(make(), **options)


@pytest.mark.parametrize("given", [None, 7, {"user": [1]}, [1, 2], np.ones((2, 3))])
def test_what_is_no_frame_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=f"clicks: expected a frame .* got {type(given).__name__}"):
        Dataset.from_frame(given)


def test_features_are_a_mapping() -> None:
    with pytest.raises(TypeError, match="features: expected a mapping"):
        Dataset.from_frame(GOOD, features=np.ones((3, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".txt"])
def test_a_file_that_is_something_else_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"clicks{ending}"
    path.write_bytes(b"\x00\xff" * 50)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Dataset.from_frame(path)


def test_a_damaged_part_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    pl.concat([GOOD] * 30).write_parquet(path, row_group_size=2000, statistics=False)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 2000):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
        Dataset.from_frame(path)


@pytest.mark.skipif(pd is None, reason="without pandas")
def test_columns_of_pandas_that_have_no_names_of_their_own() -> None:
    rows = GOOD.to_dict(as_series=False)
    with pytest.raises(ValueError, match=r"'user_id' is in the index: pass frame.reset_index"):
        Dataset.from_frame(pd.DataFrame(rows).set_index("user_id"))
    with pytest.raises(ValueError, match="'wer' is in the index"):
        Dataset.from_frame(pd.DataFrame(rows).rename(columns={"user_id": "wer"}).set_index("wer"), user="wer")
    with pytest.raises(ValueError, match=r"columns .* text, got 0 \(int\)"):
        Dataset.from_frame(pd.DataFrame(np.ones((3, 3))))
    with pytest.raises(ValueError, match=r"columns .* name.*'user_id'"):
        Dataset.from_frame(pd.DataFrame(np.ones((3, 3)), columns=["user_id", "user_id", "item_id"]))
    late = pd.DataFrame({"user_id": [None] * 1000 + [7], "item_id": range(1001)}).astype({"user_id": object})
    with pytest.raises(ValueError, match=r"'user_id' is Null .*, and (Int|Float)64"):
        Dataset.from_frame(late)
    mixed = pd.DataFrame({"user_id": [1, "ann", 2.5], "item_id": [1, 2, 3]})
    with pytest.raises(ValueError, match="row 1, column 'user_id': 'ann' is str, but '1' is int"):
        Dataset.from_frame(mixed)


def test_junk_columns_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    rows = random_rows(1, numbers=True)
    kinds: list[Callable[[int], pl.Series]] = [
        lambda n: pl.Series(f"float {n}", rng.random(400)),
        lambda n: pl.Series(f"text {n}", ["x", None] * 200),
        lambda n: pl.Series(f"object {n}", [object(), "a", 3, None] * 100, dtype=pl.Object),
        lambda n: pl.Series(f"vectors {n}", [[1.0], []] * 200),
        lambda n: pl.Series(f"nothing {n}", [None] * 400),
        lambda n: pl.Series(f"parts {n}", [{"a": 1}] * 400),
        lambda n: pl.Series(f"bytes {n}", [b"\xff"] * 400),
        lambda n: pl.Series(f"categories {n}", ["a", "b"] * 200, dtype=pl.Categorical),
    ]
    data = Dataset.from_frame(GOOD.with_columns(make(n) for n in range(25) for make in kinds))
    assert codes_of(data) == by_loop(rows) and dict(data.dropped) == {"columns that are not read": 200}


@pytest.mark.skipif(pd is None, reason="without pandas")
def test_columns_of_several_types_that_are_not_read_do_no_harm() -> None:
    rows = random_rows(1, numbers=True)
    frame = pd.DataFrame({**GOOD.to_dict(as_series=False), "mixed": [1, "a", None, {}] * 100})
    assert codes_of(Dataset.from_frame(frame)) == by_loop(rows)
