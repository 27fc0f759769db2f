"""Rows of a frame as interactions: ids as text, times of every form as numbers, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from metarec.data.clock import DAYS, Times
from metarec.data.table import times_of_text

SHOWN = 80  # characters of a value that a message shows
ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
UNITS = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def kinds_of(head: pl.DataFrame) -> dict[str, str]:
    """What each column is, in the words of atomic files: token, token_seq, float, float_seq."""
    return {column.name: _kind(column) for column in head}


def _kind(column: pl.Series) -> str:
    kind = column.dtype
    if isinstance(kind, pl.List | pl.Array):
        return "float_seq" if kind.inner.is_numeric() else "token_seq"
    if kind.is_numeric() or isinstance(kind, pl.Date | pl.Datetime):
        return "float"
    if kind == pl.String:
        text = _filled(column)
        return "float" if len(text) and not _numbers_or_iso(text).null_count() else "token"
    return "token"


def _numbers_or_iso(text: pl.Series) -> pl.Series:
    number = text.cast(pl.Float64, strict=False)
    return number if not number.null_count() else iso_times(text)


def _filled(column: pl.Series) -> pl.Series:
    text = column.drop_nulls().str.strip_chars()
    return text.filter(text != "")


def is_iso(column: pl.Series) -> bool:
    """Whether a column is text, and not of numbers."""
    return column.dtype == pl.String and bool(_filled(column).cast(pl.Float64, strict=False).null_count())


def iso_times(text: pl.Series) -> pl.Series:
    """Microseconds since 1970 of ISO dates and times, in UTC where they say no zone; null where they are none."""
    plain = text.str.replace(r"^(\d{4}-\d\d-\d\d)[Tt ]", "$1 ").str.replace(r"[Zz]$", "+00:00")
    zone = plain.str.extract(r" .*([+-]\d\d:?\d\d)$").str.replace(":", "")
    bare = pl.select(
        pl.when(zone.is_null()).then(plain).otherwise(plain.str.replace(r" ?[+-]\d\d:?\d\d$", ""))
    ).to_series()
    found = [bare.str.to_datetime(form, time_unit="us", strict=False).cast(pl.Int64) for form in ISO]
    time = pl.select(pl.coalesce(found)).to_series()
    minutes = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(3, 2).cast(pl.Int64)
    ahead = pl.select(pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes)).to_series()
    return time - ahead.fill_null(0) * 60_000_000


@dataclass(frozen=True)
class FrameRows:
    """Some rows of a frame; see :class:`metarec.data.columns.Rows`.

    Attributes:
        path: where they come from, for messages.
        types: column -> what it is, of :func:`kinds_of`.
        frame: the columns that are read.
        iso: columns of dates and times as text.
        first: the place of the first row in the whole.
        places: of each row, where some were left out.
    """

    path: str
    types: Mapping[str, str]
    frame: pl.DataFrame
    iso: frozenset[str] = frozenset()
    first: int = 0
    places: pl.Series | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.frame)

    def said(self, name: str) -> str:
        """A column as messages show it."""
        return f"{name!r} ({self.frame[name].dtype})"

    def column(self, name: str, kind: str) -> pl.Series:
        """A column as text.

        Raises:
            ValueError: if there is none.
        """
        if name not in self.types:
            raise ValueError(f"{self.path}: no column {name!r}; it has {list(self.types)[:20]}")
        column = self.frame[name]
        if name in self.iso:
            return iso_times(_stripped(column)).cast(pl.String)
        return as_text(column.to_physical() if isinstance(column.dtype, pl.Date | pl.Datetime) else column)

    def ids(self, name: str) -> pl.Series:
        """A column of ids as text.

        Raises:
            ValueError: if they are not all text, or all whole numbers.
        """
        column = self.frame[name]
        if column.dtype.is_float():
            odd = np.flatnonzero((column.is_infinite() | (column != column.floor())).fill_null(value=True).to_numpy())
            if len(odd):
                raise self.error(int(odd[0]), name, "is not a whole number; ids are text or whole numbers")
            column = column.cast(pl.Int64, strict=False)
        if not (column.dtype.is_integer() or _textual(column.dtype) or column.dtype == pl.Null):
            raise self._no_ids(name, column)
        return column.cast(pl.String)

    def _no_ids(self, name: str, column: pl.Series) -> ValueError:
        """What is wrong with ids of another type, or of several."""
        if column.dtype == pl.Object:
            return self.mixed(name, "make ids all text, or all whole numbers")
        return ValueError(
            f"{self.path}: column {name!r} is {column.dtype}; ids are text or whole numbers: make them text"
        )

    def mixed(self, name: str, wanted: str) -> ValueError:
        """The error that says in which row the values of a column change their type, and what is wanted."""
        values = self.frame[name].to_list()
        kinds = [type(value).__name__ for value in values]
        row = next((row for row, kind in enumerate(kinds) if kind != kinds[0]), 0)
        also = f"is {kinds[row]}, but {str(values[0])[:SHOWN]!r} is {kinds[0]}" if row else f"is {kinds[0]}"
        return self.error(row, name, f"{also}; {wanted}")

    def check_numbers(self, name: str) -> None:
        """See that what a column has are finite numbers; some may be missing.

        Raises:
            ValueError: if one is not; names the row.
        """
        column = self.frame[name]
        number = _stripped(column).cast(pl.Float64, strict=False)
        bad = np.flatnonzero(self.filled(name) & ~number.is_finite().fill_null(value=False).to_numpy())
        if len(bad):
            raise self.error(int(bad[0]), name, "is not a finite number")

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) a column of numbers.

        Raises:
            ValueError: if one is none, or not finite.
        """
        column = self.frame[name]
        number = _stripped(column).cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        bad = np.flatnonzero(~np.isfinite(number))
        if len(bad):
            raise self.error(int(bad[0]), name, "is not a finite number")
        return number

    def times(self, name: str) -> Times:
        """(n,) a column of times: numbers as they are, dates as days, datetimes in their unit, text in microseconds.

        Raises:
            ValueError: if one is no time.
        """
        column = self.frame[name]
        if isinstance(column.dtype, pl.Date | pl.Datetime):
            return column.to_physical().cast(pl.Int64).to_numpy()
        if column.dtype.is_integer():
            return column.cast(pl.Int64).to_numpy()
        if column.dtype.is_numeric():
            return _whole(self.numbers(name))
        if column.dtype == pl.Object:
            raise self.mixed(name, f"expected {FORM}, and all times alike")
        if column.dtype != pl.String:
            raise ValueError(f"{self.path}: column {name!r} is {column.dtype}, which is no time; expected {FORM}")
        text = _stripped(column)
        if name not in self.iso:
            return times_of_text(text, lambda row, _: self.error(row, name, f"is no time; expected {FORM}"))
        time = iso_times(text)
        if time.null_count():
            raise self.error(int(time.is_null().arg_max() or 0), name, f"is no time; expected {FORM}")
        return time.to_numpy()

    def filter(self, kept: NDArray[np.bool_]) -> Self:
        """Some of the rows; ``kept`` is an (n,) mask."""
        if kept.all():
            return self
        rows = pl.Series(kept)
        places = pl.Series(np.arange(self.first, self.first + len(self))) if self.places is None else self.places
        return replace(self, frame=self.frame.filter(rows), places=places.filter(rows))

    def filled(self, name: str) -> NDArray[np.bool_]:
        """(n,) where a column has a value."""
        column = self.frame[name]
        there = column.is_not_null()
        if column.dtype.is_float():
            there &= column.is_not_nan().fill_null(value=False)
        elif column.dtype == pl.String:
            there &= (column.str.strip_chars() != "").fill_null(value=False)
        elif column.dtype == pl.Categorical or isinstance(column.dtype, pl.Enum):
            there &= (column.cast(pl.String) != "").fill_null(value=False)
        return there.to_numpy()

    def error(self, row: int, column: str, problem: str) -> ValueError:
        """The error that says which value is wrong and why."""
        place = self.first + row if self.places is None else self.places[row]
        value = str(self.frame[column][row])[:SHOWN]
        return ValueError(f"{self.path}: row {place}, column {column!r}: {value!r} {problem}")


FORM = "a date, a datetime, ISO text such as 2024-05-01T12:30:00Z, or a number such as unix seconds"


def day_of(column: pl.Series) -> float | None:
    """How many units of its times are a day, where the type of a column says it."""
    if isinstance(column.dtype, pl.Date):
        return 1.0
    return DAYS[UNITS[column.dtype.time_unit]] if isinstance(column.dtype, pl.Datetime) else None


def whole_seconds(time: Times) -> tuple[Times, float]:
    """Microseconds as seconds, where nothing is lost, and how many of the units are a day."""
    second = 1_000_000
    return (time // second, DAYS["seconds"]) if not (time % second).any() else (time, DAYS["microseconds"])


def as_text(column: pl.Series) -> pl.Series:
    """A column as text; floats that are all whole as whole numbers, lists as their values side by side."""
    if column.dtype.is_float():
        known = column.drop_nulls().drop_nans()
        if (known == known.floor()).all():
            column = column.fill_nan(None).cast(pl.Int64, strict=False)
    if isinstance(column.dtype, pl.List | pl.Array):
        lists = _lists(column)
        return lists.list.join(list_separator(column), ignore_nulls=True)
    return (
        pl.Series(column.name, list(map(str, column.to_list())))
        if column.dtype == pl.Object
        else column.cast(pl.String)
    )


def list_separator(column: pl.Series) -> str:
    """What stands between the values of a list in its text: a blank, or a bar where values have blanks."""
    return "|" if _lists(column).explode().drop_nulls().str.contains(r"\s").any() else " "


def _lists(column: pl.Series) -> pl.Series:
    lists = column if isinstance(column.dtype, pl.List) else column.arr.to_list()
    return lists.cast(pl.List(pl.String))


def _textual(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.String | pl.Categorical | pl.Enum)


def _stripped(column: pl.Series) -> pl.Series:
    return column.str.strip_chars() if column.dtype == pl.String else column


def _whole(number: NDArray[np.float64]) -> Times:
    """Numbers as int64 where all are whole."""
    return number.astype(np.int64) if (number == np.floor(number)).all() else number
