"""Frames of every library and files of columns, against loops over rows and the atomic files of the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from frame_worlds import NAMES, by_loop, codes_of, frame_of, parquet_of, random_rows, write_atomic
from metarec.data import Dataset, Vocabulary, events, frame_source, load_atomic
from optional import imported

Make = Callable[[pl.DataFrame, Path], Any]


def _pattern(frame: pl.DataFrame, folder: Path) -> str:
    frame[:150].write_parquet(folder / "part0.parquet")
    frame[150:].write_parquet(folder / "part1.parquet")
    return str(folder / "part*.parquet")


def _csv(frame: pl.DataFrame, folder: Path, ending: str = ".csv") -> Path:
    frame.write_csv(folder / f"clicks{ending}", separator="\t" if ending == ".tsv" else ",")
    return folder / f"clicks{ending}"


LIBRARIES: dict[str, Make] = {
    "polars": lambda frame, _: frame,
    "polars, lazy": lambda frame, _: frame.lazy(),
    "polars, in chunks": lambda frame, _: pl.concat([frame[:7], frame[7:]], rechunk=False),
}
FILES: dict[str, Make] = {
    "parquet": parquet_of,
    "path as text": lambda frame, folder: str(parquet_of(frame, folder)),
    "folder": lambda frame, folder: parquet_of(frame, folder).parent,
    "pattern": _pattern,
}
TEXT_FILES: dict[str, Make] = {"csv": _csv, "tsv": lambda frame, folder: _csv(frame, folder, ".tsv")}
pd, pa = imported("pandas"), imported("pyarrow")
if pd is not None:
    LIBRARIES |= {
        "pandas": lambda frame, _: pd.DataFrame(frame.to_dict(as_series=False)),
        "pandas under another index": lambda frame, _: pd.DataFrame(
            frame.to_dict(as_series=False), index=np.arange(len(frame))[::-1] * 3
        ),
        "pandas objects": lambda frame, _: pd.DataFrame(frame.to_dict(as_series=False)).astype(object),
        "pandas categories": lambda frame, _: pd.DataFrame(frame.to_dict(as_series=False)).astype(
            {"user_id": "category", "item_id": "category"}
        ),
    }
if pa is not None:
    LIBRARIES |= {
        "arrow": lambda frame, _: frame.to_arrow(),
        "arrow, one batch": lambda frame, _: frame.to_arrow().combine_chunks().to_batches()[0],
    }


@pytest.mark.parametrize("numbers", [False, True], ids=["text", "numbers"])
@pytest.mark.parametrize("kind", [*LIBRARIES, *FILES])
def test_the_rows_of_a_loop_and_the_codes_of_an_atomic_file(kind: str, numbers: bool, tmp_path: Path) -> None:
    rows = random_rows(1, numbers=numbers)
    frame = frame_of(rows)
    data = Dataset.from_frame({**LIBRARIES, **FILES}[kind](frame, tmp_path))
    assert codes_of(data) == by_loop(rows)
    assert data.users.ids == tuple(sorted({user for user, _, _ in rows}, key=str))
    assert set(map(type, data.users.ids + data.catalog.items.ids)) == {int if numbers else str}
    atomic = load_atomic(write_atomic(frame, tmp_path / "same.inter"))
    for column in ("user", "item", "time", "warm"):
        assert np.array_equal(getattr(data, column), getattr(atomic, column))
        assert getattr(data, column).dtype == getattr(atomic, column).dtype
    assert list(data.users.texts) == list(atomic.users.ids) and data.day is atomic.day is None
    assert list(data.catalog.items.texts) == list(atomic.catalog.items.ids)


@pytest.mark.parametrize("kind", TEXT_FILES)
@pytest.mark.parametrize("numbers", [False, True], ids=["text", "numbers"])
def test_ids_of_text_files_are_text(kind: str, numbers: bool, tmp_path: Path) -> None:
    rows = random_rows(2, numbers=numbers)
    data = Dataset.from_frame(TEXT_FILES[kind](frame_of(rows), tmp_path))
    assert codes_of(data) == by_loop(rows) and data.name == "clicks"
    assert set(map(type, data.users.ids)) == {str}
    leading = frame_of([("007", "1e5", 5), ("7", "NaN", 6)])
    found = Dataset.from_frame(TEXT_FILES[kind](leading, tmp_path))
    assert (found.users.ids, found.catalog.items.ids) == (("007", "7"), ("1e5", "NaN"))


@pytest.mark.parametrize("block", [1, 7, 64, 399, 400, 401])
@pytest.mark.parametrize("kind", ["parquet", "polars"])
def test_the_same_whatever_the_block(block: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_source, "BLOCK", block)
    monkeypatch.setattr(events, "FEW", 9)
    monkeypatch.setattr(events, "PART", 1 + block // 3)
    rows = random_rows(3, numbers=True)
    assert codes_of(Dataset.from_frame({**LIBRARIES, **FILES}[kind](frame_of(rows), tmp_path))) == by_loop(rows)


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(4, numbers=True)
    frame = frame_of(rows).with_columns(pl.lit("x" * 50).alias(f"junk{n}") for n in range(200))
    read: list[tuple[str, ...]] = []
    blocks = frame_source.Source.blocks

    def told(source: frame_source.Source, columns: Any) -> Any:
        for block in blocks(source, columns):
            read.append(tuple(block.columns))
            yield block

    monkeypatch.setattr(frame_source.Source, "blocks", told)
    data = Dataset.from_frame(parquet_of(frame, tmp_path))
    assert codes_of(data) == by_loop(rows) and set(read) == {NAMES}
    assert dict(data.dropped) == {"columns that are not read": 200} and "200" in repr(data)


@pytest.mark.parametrize(
    "names",
    [
        ("user", "item", "time"),
        ("userId", "movieId", "timestamp"),
        ("customer_id", "article_id", "t_dat_time"),
        ("visitorid", "itemid", "event_time"),
        ("reviewerID", "asin", "unixReviewTime"),
        ("UserID", "ProductId", "created_at"),
    ],
)
def test_the_usual_names_are_known(names: tuple[str, str, str]) -> None:
    rows = random_rows(5, numbers=False)
    assert codes_of(Dataset.from_frame(frame_of(rows, names))) == by_loop(rows)


def test_columns_are_named_by_arguments() -> None:
    rows = random_rows(6, numbers=False)
    frame = frame_of(rows, ("wer", "was", "wann")).with_columns(pl.lit("x").alias("user_id"))
    assert codes_of(Dataset.from_frame(frame, user="wer", item="was", time="wann")) == by_loop(rows)
    numbered = Dataset.from_frame(frame, user="wer", item="was", ignore=("wann",))
    assert codes_of(numbered) == by_loop([(user, item, row) for row, (user, item, _) in enumerate(rows)])
    assert numbered.day == 0.0


IDS: dict[str, tuple[pl.Series, list[Any]]] = {
    "small numbers": (pl.Series([3, 1, 2], dtype=pl.UInt8), [1, 2, 3]),
    "numbers below 0": (pl.Series([-3, 1, 20]), [-3, 1, 20]),
    "large numbers": (pl.Series([2**64 - 1, 2**63, 5], dtype=pl.UInt64), [2**64 - 1, 5, 2**63]),
    "numbers that were floats": (pl.Series([3.0, 1.0, 20.0]), [1, 20, 3]),
    "categories": (pl.Series(["x", "y", "x"], dtype=pl.Categorical), ["x", "y"]),
    "categories of which one is not used": (pl.Series(["x", "y", "x"], dtype=pl.Enum(["z", "y", "x"])), ["x", "y"]),
    "text with blanks": (pl.Series([" a", "a ", "a"]), [" a", "a", "a "]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_are_given_back(kind: str) -> None:
    column, expected = IDS[kind]
    data = Dataset.from_frame(pl.DataFrame({"user": column, "item": column, "time": [3, 4, 5]}))
    for vocabulary in (data.users, data.catalog.items):
        assert sorted(vocabulary.ids, key=str) == sorted(expected, key=str) == list(vocabulary.ids)
    assert sorted(data.users.decode(data.user)) == sorted(int(v) if column.dtype.is_numeric() else v for v in column)


@pytest.mark.skipif(pd is None, reason="without pandas")
def test_nullable_columns_and_unused_categories_of_pandas() -> None:
    frame = pd.DataFrame(
        {
            "user": pd.Categorical([5, 6, 5, 6], categories=[4, 5, 6]),
            "item": pd.array([10**17 + 1, None, 3, 4], dtype="Int64"),
            "time": pd.to_datetime(["2024-05-01", "2024-05-02", None, "2024-05-03"]),
        }
    )
    data = Dataset.from_frame(frame)
    assert data.users.ids == (5, 6) and data.catalog.items.ids == (10**17 + 1, 4)
    assert dict(data.dropped) == {"rows without item": 1, "rows without time": 1}
    assert data.days(2) == data.time[1] - data.time[0]


def test_rows_in_which_something_is_missing_are_counted() -> None:
    rows = random_rows(8, numbers=True)
    frame = frame_of(rows).cast({"user_id": pl.Float64}).with_row_index("row")
    holes = frame.with_columns(
        pl.when(pl.col("row") % 10 == 0).then(None).otherwise("user_id").alias("user_id"),
        pl.when(pl.col("row") % 15 == 0).then(None).otherwise("item_id").alias("item_id"),
    ).with_columns(pl.when(pl.col("row") % 10 == 1).then(float("nan")).otherwise("user_id").alias("user_id"))
    data = Dataset.from_frame(holes.drop("row"))
    kept = [row for place, row in enumerate(rows) if place % 10 > 1 and place % 15]
    assert codes_of(data) == by_loop(kept)
    by_item = sum(place % 15 == 0 and place % 10 > 1 for place in range(len(rows)))
    assert dict(data.dropped) == {"rows without user_id": 80, "rows without item_id": by_item}
    assert f"{80 / len(rows):.1%}" in repr(data)


def test_rows_that_are_no_clicks_are_counted_and_their_share_is_shown() -> None:
    rows = random_rows(9, numbers=False)
    rated = frame_of(rows).with_columns(pl.Series("rating", [place % 5 + 1 for place in range(len(rows))]))
    data = Dataset.from_frame(rated, positive={"rating": 4})
    assert codes_of(data) == by_loop([row for place, row in enumerate(rows) if place % 5 + 1 >= 4])
    assert dict(data.dropped) == {"rows with rating below 4": 240} and "60.0%" in repr(data)


def test_repeats_and_duplicates_are_shown() -> None:
    data = Dataset.from_frame(pl.DataFrame({"user": [1] * 4, "item": ["a", "a", "b", "a"], "time": [5, 5, 6, 7]}))
    assert "1 of them duplicates" in repr(data) and "33.3% repeats" in repr(data)


def test_a_label_with_zeros_is_warned_of_at_the_callers_line() -> None:
    frame = frame_of(random_rows(1, numbers=True)).with_columns(pl.Series("is_click", [0, 1] * 200))
    with pytest.warns(UserWarning, match=r"is_click.*200 of 400.*from_frame.*positive") as told:
        Dataset.from_frame(frame)
    assert [warning.filename for warning in told] == [__file__]
    assert len(Dataset.from_frame(frame, ignore=["is_click"])) == 400


def test_vocabularies_of_numbers_and_of_text_are_not_the_same() -> None:
    numbers, text = Vocabulary([1, 20]), Vocabulary(["1", "20"])
    assert numbers != text and list(numbers.texts) == list(text.texts)
    assert numbers.encode(np.array([20, 1])).tolist() == [2, 1] and numbers.encode(pl.Series([20])).tolist() == [2]
