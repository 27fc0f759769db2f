"""Which columns of a file are read, what is warned of, refused and counted: against files written here."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from metarec.data import load_atomic

UNIX = [1_362_062_838 + 86_400 * day for day in (5, 1, 3)]


def file(folder: Path, columns: dict[str, list[object]]) -> Path:
    """Three clicks of one user on a, b and c, with these other columns."""
    rows = zip("uuu", "abc", *columns.values(), strict=True)
    lines = ["\t".join(["user_id:token", "item_id:token", *columns]), *("\t".join(map(str, row)) for row in rows)]
    path = folder / "d.inter"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def clicks(path: Path, **how: object) -> str:
    data = load_atomic(path, **how)  # type: ignore[arg-type]
    return "".join(data.catalog.items.decode(data.item))


NAMES = "time Timestamp date DATE ts created_at time_ms exposure_time eventTime unixReviewTime click_time when"


@pytest.mark.parametrize("name", NAMES.split())
def test_a_column_called_like_a_time_is_the_time(tmp_path: Path, name: str) -> None:
    data = load_atomic(file(tmp_path, {f"{name}:float": [5, 1, 3], "device:token": ["x", "y", "x"]}))
    assert (data.catalog.items.decode(data.item), data.time.tolist()) == (["b", "c", "a"], [1, 3, 5])
    assert data.dropped == {"values of column 'device', which is not read": 3}
    assert "left out {\"values of column 'device'" in repr(data)


def test_a_length_of_time_is_not_the_time(tmp_path: Path) -> None:
    assert clicks(file(tmp_path, {"watch_time:float": [9, 1, 2], "time:float": [5, 1, 3]})) == "bca"
    alone = file(tmp_path, {"watch_time:float": [9, 1, 2]})
    told = r"d\.inter: column 'watch_time:float' looks .*'watch_time'.*ignore="
    with pytest.raises(ValueError, match=told):
        load_atomic(alone)
    assert clicks(alone, time_field="watch_time") == "bca"
    assert clicks(alone, ignore=("watch_time",)) == "abc"


@pytest.mark.parametrize("header", ["date:token", "timestamp:token", "release_date:float", "day:float"])
def test_what_may_be_a_time_and_is_not_read_is_refused(tmp_path: Path, header: str) -> None:
    path = file(tmp_path, {header: [20130228, 20130227, 20130226]})
    with pytest.raises(ValueError, match=f"column '{header}' looks"):
        load_atomic(path)


def test_dates_that_are_no_numbers_are_refused_with_the_line(tmp_path: Path) -> None:
    path = file(tmp_path, {"date:float": ["2013-02-28", "2013-02-27", "2013-02-26"]})
    with pytest.raises(ValueError, match=r"line 2, column 'date': '2013-02-28' .*number; .* unix seconds"):
        load_atomic(path)


def test_two_times_are_refused_and_either_can_be_chosen(tmp_path: Path) -> None:
    path = file(tmp_path, {"timestamp:float": [1, 2, 3], "exposure_time:float": [3, 2, 1]})
    with pytest.raises(ValueError, match=r"more .*column.*: 'timestamp', 'exposure_time'; pass"):
        load_atomic(path)
    assert clicks(path, time_field="timestamp") == clicks(path, ignore=["exposure_time"]) == "abc"
    assert clicks(path, time_field="exposure_time") == "cba"


def test_unix_times_under_any_name_are_the_time_and_that_is_said(tmp_path: Path) -> None:
    path = file(tmp_path, {"t0:float": UNIX, "price:float": [1, 2, 3]})
    with pytest.warns(UserWarning, match=r"column 't0' .*taken.*, .* time_field='t0'"):
        assert clicks(path) == "bca"
    assert clicks(path, time_field="t0") == "bca"
    assert clicks(path, ignore=("t0",)) == "abc"
    with pytest.raises(ValueError, match=r"more .*column.*: 't0', 't1'"):
        load_atomic(file(tmp_path, {"t0:float": UNIX, "t1:float": UNIX}))


def test_the_order_of_the_rows_is_no_time_of_the_calendar(tmp_path: Path) -> None:
    assert load_atomic(file(tmp_path, {"price:float": [1, 2, 3]})).day == 0
    assert load_atomic(file(tmp_path, {"time:float": UNIX})).day is None


LISTS = (
    "item_id_list:token_seq",
    "item_seq:token_seq",
    "timestamp_list:float_seq",
    "history:token",
    "itemIds:token_seq",
)


@pytest.mark.parametrize("header", LISTS)
def test_lists_of_clicks_are_refused_by_name(tmp_path: Path, header: str) -> None:
    path, name = file(tmp_path, {header: ["1 2", "3", "4"]}), header.split(":")[0]
    with pytest.raises(ValueError, match=rf"d\.inter: column '{header}' looks.* clicks.*ignore=\('{name}',\)"):
        load_atomic(path)
    assert clicks(path, ignore=(name,)) == "abc"


def test_the_parts_of_a_split_before_are_no_data_set(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        file(tmp_path, {}).rename(tmp_path / f"x.{part}.inter")
    with pytest.raises(FileNotFoundError, match=r"x\.test\.inter.*split"):
        load_atomic(tmp_path)


@pytest.mark.parametrize(
    ("header", "values", "zeros"),
    [
        ("label:float", [1, 0, 0], 2),
        ("is_click:token", ["0", " 1", "1"], 1),
        ("Clicked:token", ["True", "False", "true"], 1),
        ("rating:float", [5, -1, 0], 2),
    ],
)
def test_rows_that_say_they_are_no_clicks_are_warned_of(
    tmp_path: Path, header: str, values: list[object], zeros: int
) -> None:
    path, name = file(tmp_path, {header: values}), header.split(":")[0]
    told = rf"says 0 or less: '{name}' \({zeros} of 3 rows\); pass load_atomic\(\.\.\., positive=\{{'{name}': 1\}}\)"
    with pytest.warns(UserWarning, match=told):
        data = load_atomic(path)
    assert len(data) == 3 and data.dropped == {f"values of column '{name}', which is not read": 3}
    assert load_atomic(path, ignore=(name,)).dropped == {}


def test_ratings_without_zeros_are_clicks_and_mentioned(tmp_path: Path) -> None:
    data = load_atomic(file(tmp_path, {"rating:float": [1, 2, 5], "time:float": UNIX}))
    assert len(data) == 3 and data.dropped == {"values of column 'rating', which is not read": 3}


def test_positive_keeps_the_rows_from_a_value_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, rating, when = rng.integers(0, 2, 500), rng.integers(1, 6, 500), rng.permutation(500)
    rows = [
        f"u{row % 7}\ti{row % 31}\t{a}\t{b}\t{t}" for row, (a, b, t) in enumerate(zip(label, rating, when, strict=True))
    ]
    path = tmp_path / "d.inter"
    path.write_text("\n".join(["user_id:token\titem_id:token\tlabel:float\trating:token\ttime:float", *rows]))
    data = load_atomic(path, positive={"label": 1, "rating": 4})
    kept = {
        (f"u{row % 7}", f"i{row % 31}", int(when[row])) for row in range(500) if label[row] >= 1 and rating[row] >= 4
    }
    found = zip(data.users.decode(data.user), data.catalog.items.decode(data.item), data.time.tolist(), strict=True)
    assert set(found) == kept and len(data) == len(kept)
    low = int((label == 1).sum())
    assert data.dropped == {"rows with label below 1": 500 - low, "rows with rating below 4": low - len(kept)}


def test_positive_that_cannot_be(tmp_path: Path) -> None:
    path = file(tmp_path, {"rating:float": [1, 2, "x"], "score:float": [1, 2, 3]})
    for wrong in ("rating > 3", {"rating": "3"}, {"rating": float("nan")}, ["rating"]):
        with pytest.raises(ValueError, match=r"positive .*column -> "):
            load_atomic(path, positive=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"d\.inter: no column 'stars'"):
        load_atomic(path, positive={"stars": 3})
    with pytest.raises(ValueError, match=r"line 4, column 'rating': 'x' .*number"):
        load_atomic(path, positive={"rating": 1})
    with pytest.raises(ValueError, match=r"no .*click.* positive=\{'score': 9\}; .*largest .* 3"):
        load_atomic(path, positive={"score": 9})


def test_ignore_names_columns_that_are_there(tmp_path: Path) -> None:
    path = file(tmp_path, {"time:float": UNIX})
    with pytest.raises(ValueError, match=r"ignore .*string 'time'"):
        load_atomic(path, ignore="time")
    with pytest.raises(ValueError, match=r"d\.inter: no column 'label'"):
        load_atomic(path, ignore=("label",))


@pytest.mark.parametrize("between", [" ", ",", ";", ", ", "|"])
def test_columns_that_are_not_separated_by_tabs(tmp_path: Path, between: str) -> None:
    path = tmp_path / "d.inter"
    path.write_text(between.join(["user_id:token", "item_id:token", "timestamp:float"]) + "\n" + between.join("ua1"))
    with pytest.raises(ValueError, match=r"d\.inter: .*separated"):
        load_atomic(path)


def test_ids_stay_the_strings_that_they_are_but_for_blanks(tmp_path: Path) -> None:
    ids = ["001", "1", "1e5", "NA", "null", "None", "True", '"q"', "1.0", "9" * 30, "x" * 100_000]
    lines = ["user_id:token \t item_id : token", *(f" u\t{name} " for name in ids)]
    (tmp_path / "d.inter").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_atomic(tmp_path)
    assert data.catalog.items.decode(data.item) == ids
    assert data.users.ids == ("u",)
    (tmp_path / "d.inter").write_text("user_id:token\titem_id:token\nu\t  \n")
    with pytest.raises(ValueError, match=r"line 2, column 'item_id': is empty"):
        load_atomic(tmp_path)


def test_lines_that_end_in_carriage_returns_alone(tmp_path: Path) -> None:
    (tmp_path / "d.inter").write_bytes(b"user_id:token\titem_id:token\ru\ta\r")
    with pytest.raises(ValueError, match=r"d\.inter: .*carriage"):
        load_atomic(tmp_path)
