"""Which columns of an interaction file are read, and what is said of the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from metarec.data.clock import Times, told_day, unit_of
from metarec.data.warned import warn

# The words of a column's name that say what it may be.
TIME = re.compile(
    "time|timestamps?|ts|date|datetime|epoch|unix|created|when|day|hour|week|month|year|(unix)?(time|timestamp)(ms|s|us|ns)?"
)
LASTING = re.compile(
    "watch(ed)?|play(ed)?|dwell|spen[dt]|stay|duration|elapsed|reading|gap|delta|diff|zone|of|birth|since|remaining|"
    "releas(e|ed)|publish(ed)?|upload(ed)?|load|response|total|average|avg|mean|session|day|hour|week|month|year"
)
"""They make it the time of something else, or a length of time."""
LABEL = re.compile(
    "labels?|(is)?(clicks?|clicked|liked?)|purchased?|buy|bought|conversion|converted|positive|relevance|relevant|"
    "feedback|ratings?|scores?|stars?|overall|targets?|y"
)
LIST = re.compile("lists?|histor(y|ies)|hist|seq|sequence|past|previous|impressions")
ITEM = re.compile("items?")
NO = ("false", "no", "none", "f", "n")


@dataclass(frozen=True)
class Asked:
    """What the caller of ``load_atomic`` or ``Dataset.from_frame`` says of the columns; see there.

    Attributes:
        time_field: as it was given, like the next two.
        positive: column to least value of a click.
        ignore: columns to pass over.
        user: the column of users' ids.
        item: the column of items' ids.
        call: what was called, for messages, as are the next two.
        time_word: its argument that names the time.
        time_form: what a time looks like there.
        weight: the column of weights, if there is one.
        kind: the column of kinds of events, likewise.
        target: the kind that is to be predicted.

    Raises:
        ValueError: if an argument is of another form.
    """

    time_field: str | None = None
    positive: Mapping[str, float] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    user: str = "user_id"
    item: str = "item_id"
    call: str = "load_atomic"
    time_word: str = "time_field"
    time_form: str = "a number, of type float in the header"
    weight: str | None = None
    kind: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ignore, str):
            raise ValueError(
                f"ignore must be names of columns, got the string {self.ignore!r}; write ({self.ignore!r},)"
            )
        ok = isinstance(self.positive, Mapping) and all(
            isinstance(least, int | float) and np.isfinite(least) for least in self.positive.values()
        )
        if (self.kind is None) != (self.target is None):
            raise ValueError(
                f"kind and target belong together: the column that says what each row is, and the kind that is to be "
                f"predicted; got kind={self.kind!r} and target={self.target!r}"
            )
        if not ok:
            raise ValueError(
                f"positive must be column -> the least value of a click, such as {{'rating': 4}}, got {self.positive!r}"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The column of kinds, if there is one."""
        return () if self.kind is None else (self.kind,)

    @property
    def weights(self) -> tuple[str, ...]:
        """The column of weights, if there is one."""
        return () if self.weight is None else (self.weight,)


class Rows(Protocol):
    """Some rows of a table of interactions: of an atomic file, or of a frame."""

    @property
    def path(self) -> object:
        """Where they come from, for messages."""

    @property
    def types(self) -> Mapping[str, str]:
        """Column -> one of token, token_seq, float, float_seq."""

    def __len__(self) -> int: ...

    def said(self, name: str) -> str:
        """A column as messages show it."""

    def column(self, name: str, kind: str) -> pl.Series:
        """A column as text."""

    def ids(self, name: str) -> pl.Series:
        """A column of ids as text."""

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) a column of numbers."""

    def times(self, name: str) -> Times:
        """(n,) a column of times."""

    def filter(self, kept: NDArray[np.bool_]) -> Self:
        """Some of the rows; ``kept`` is an (n,) mask."""


R = TypeVar("R", bound=Rows)


class Columns:
    """The columns of one table as they are read, and counts of what they leave out.

    Args:
        block: the first rows of the table.
        asked: what the caller says of them.

    Attributes:
        time: the time column; None where the order of the rows stands in for it.
        dropped: what was left out until now and how much of it.

    Raises:
        ValueError: if a column that nobody asked for holds lists of clicks or may be the time, or an asked one is
            not there.
    """

    def __init__(self, block: Rows, asked: Asked) -> None:
        self.path, self.asked = block.path, asked
        self.dropped: dict[str, int] = {}
        for name in (*asked.positive, *asked.weights, *asked.ignore):
            block.column(name, block.types.get(name, "float"))
        taken = {asked.user, asked.item, *asked.positive, *asked.weights, *asked.kinds, *asked.ignore}
        self._free = {name: kind for name, kind in block.types.items() if name not in taken}
        self._refuse_lists(block)
        self.time = asked.time_field or self._find_time(block)
        self._free.pop(self.time or "", None)
        self._labels = [n for n in self._free if _says(n, LABEL)] if not asked.positive else []
        self._zeros = dict.fromkeys(self._labels, 0)
        self._kept = self._rows = 0
        self._largest = dict.fromkeys(asked.positive, -np.inf)

    def clicks(self, block: R) -> R:
        """The rows of a block that are clicks."""
        self._rows += len(block)
        for name in self._labels:
            text = block.column(name, self._free[name]).str.strip_chars()
            zero = (text.cast(pl.Float64, strict=False) <= 0).fill_null(False) | text.str.to_lowercase().is_in(NO)
            self._zeros[name] += int(zero.sum())
        for name, least in self.asked.positive.items():
            value = block.numbers(name)
            self._largest[name] = max(self._largest[name], float(value.max(initial=-np.inf)))
            kept = value >= least
            below = f"rows with {name} below {least:g}"
            self.dropped[below] = self.dropped.get(below, 0) + int((~kept).sum())
            block = block.filter(kept)
        self._kept += len(block)
        return block

    def weights(self, clicks: Rows) -> NDArray[np.float64]:
        """(n,) what clicks weigh; (0,) where no column says.

        Raises:
            ValueError: if one is not a number above 0.
        """
        if self.asked.weight is None:
            return np.empty(0)
        weight = clicks.numbers(self.asked.weight)
        if (weight <= 0).any():
            name, least = self.asked.weight, weight.min()
            raise ValueError(
                f"{self.path}: column {name!r} has weights down to {least:g}; expected numbers above 0: leave rows out "
                f"with positive={{{name!r}: ...}}, the least value of a click"
            )
        return weight

    def finish(self) -> dict[str, int]:
        """Say what is to be said after the last row, and return what was left out.

        Raises:
            ValueError: if no row is a click.
        """
        if not self._rows:
            raise ValueError(f"{self.path}: no interactions, only a header")
        if not self._kept:
            raise ValueError(
                f"{self.path}: no row is a click by positive={dict(self.asked.positive)}; the largest values are "
                f"{self._largest}"
            )
        zeros = {name: count for name, count in self._zeros.items() if count}
        if zeros:
            name = next(iter(zeros))
            told = ", ".join(f"{column!r} ({count:,} of {self._rows:,} rows)" for column, count in zeros.items())
            warn(
                f"{self.path}: every row is taken for a click, also where a column says 0 or less: {told}; pass "
                f"{self.asked.call}(..., positive={{{name!r}: 1}}) to keep the rows from 1 on, or "
                f"ignore=({name!r},) for all"
            )
        return {what: count for what, count in self.dropped.items() if count}

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that are read."""
        time = () if self.time is None else (self.time,)
        asked = self.asked
        return tuple(
            dict.fromkeys((asked.user, asked.item, *time, *asked.positive, *asked.weights, *asked.kinds, *self._labels))
        )

    @property
    def unread(self) -> tuple[str, ...]:
        """The columns of which nothing is kept, but for those that the caller ignores."""
        return tuple(self._free)

    def _refuse_lists(self, block: Rows) -> None:
        for name, kind in self._free.items():
            if (_says(name, LIST) and kind != "float") or (kind.endswith("_seq") and _says(name, ITEM)):
                raise ValueError(
                    f"{self.path}: column {block.said(name)} looks like a list of clicks, as in files that were split "
                    "before; expected one click a row: give the file from before the split, or write one row for each "
                    f"click of a list; ignore=({name!r},) reads the file without this column"
                )

    def _find_time(self, block: Rows) -> str | None:
        """The time column, by its name or else by its values."""
        call = f"{self.asked.call}(..., {self.asked.time_word}"
        floats = [name for name, kind in self._free.items() if kind == "float"]
        like = [name for name, kind in self._free.items() if not kind.endswith("_seq") and _says(name, TIME)]
        named = [name for name in floats if name in like and not _says(name, LASTING)]
        found = named or [name for name in floats if _calendar(block, name)]
        if len(found) > 1:
            raise ValueError(
                f"{self.path}: more than one column looks like the time: {', '.join(map(repr, found))}; pass "
                f"{call}={found[0]!r}) or another, or ignore=(...) those that are not"
            )
        if found and not named:
            warn(
                f"{self.path}: column {found[0]!r} is taken for the time, as its values are times of the calendar; "
                f"pass {call}={found[0]!r}) to say so, or ignore=({found[0]!r},)"
            )
        if like and not found:
            raise ValueError(
                f"{self.path}: column {block.said(like[0])} looks like a time but is not read; pass "
                f"{call}={like[0]!r}) if it is the time of the click, as {self.asked.time_form}; or "
                f"ignore=({like[0]!r},) if not: the order of the rows is then the order in time"
            )
        return found[0] if found else None


def _says(name: str, what: re.Pattern[str]) -> bool:
    """Whether one of the words of a column's name, or all of them as one, are of a kind."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(what.fullmatch(word.lower()) for word in [*words, "".join(words)])


def _calendar(block: Rows, name: str) -> bool:
    """Whether a column holds unix times in one unit."""
    number = block.column(name, "float").str.strip_chars().cast(pl.Float64, strict=False).fill_null(0.0).to_numpy()
    return told_day(number) > 1 and unit_of(number.min()) == unit_of(number.max()) is not None
