"""Frames of any library and files of columns, opened: their columns, their first rows, and blocks of all rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

LOOKED_AT = 1000  # rows by which the columns are told apart
BLOCK = 1 << 19  # rows of a file that are held at a time
FILES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Source:
    """A table that can be read some columns and rows at a time.

    Attributes:
        name: for messages: the path, or the argument that was given.
        table: what is read.
        parts: whether some rows can be read without those before: of Parquet, in which polars writes groups of half a
            block.
        typed: whether its columns have types; those of CSV are text.
    """

    name: str
    table: nw.DataFrame[Any] | nw.LazyFrame[Any]
    parts: bool = False
    typed: bool = True

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """All there are."""
        return tuple(self.table.collect_schema().names())

    @cached_property
    def head(self) -> pl.DataFrame:
        """The first rows of all columns; of type Object where values of one column have several types."""
        return self._collected(self.table.head(LOOKED_AT), self.columns)

    def blocks(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """All rows of some columns, in their order."""
        if self.parts:
            table: pl.LazyFrame = nw.to_native(self.table)
            with _reading(self.name):
                rows = int(table.select(pl.len()).collect().item())
            for start in range(0, rows, BLOCK):
                with _reading(self.name):
                    block = table.select(columns).slice(start, BLOCK).collect()
                yield block
        else:
            yield from self._collected(self.table, columns).iter_slices(BLOCK)

    def whole(self, columns: Sequence[str]) -> pl.DataFrame:
        """All rows of some columns."""
        return self._collected(self.table, columns)

    def _collected(self, table: nw.DataFrame[Any] | nw.LazyFrame[Any], columns: Sequence[str]) -> pl.DataFrame:
        if isinstance(table, nw.LazyFrame):
            with _reading(self.name):
                return nw.to_native(table.select(*columns).collect(backend="polars"))  # type: ignore[no-any-return]
        return pl.DataFrame([_column(table[name]).alias(name) for name in columns])


def open_source(given: Any, what: str) -> Source:
    """Open a frame, or a file of columns.

    Args:
        given: a frame of pandas, polars (lazy too), Arrow, DuckDB or another library that narwhals knows or that
            exports Arrow streams; or a path to Parquet (a file, a folder or a pattern) or CSV.
        what: the argument that it was given for.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is neither.
        ValueError: if a file has another ending or cannot be read, or the columns have no names, or one name twice.
    """
    if isinstance(given, str | Path):
        return _open_file(given)
    try:
        frame = nw.from_native(given, allow_series=False)
    except TypeError:
        if not hasattr(given, "__arrow_c_stream__"):
            raise TypeError(
                f"{what}: expected a frame (pandas, polars, Arrow ...) or the path of a file ({', '.join(FILES)}), got "
                f"{type(given).__name__}; a dict of columns becomes one by polars.DataFrame(columns)"
            ) from None
        frame = nw.from_native(pl.DataFrame(given))
    except nw.exceptions.DuplicateError as reason:
        raise ValueError(f"{what}: two columns have one name ({' '.join(str(reason).split())}); rename one") from None
    odd = [name for name in frame.collect_schema().names() if not isinstance(name, str)]
    if odd:
        raise ValueError(
            f"{what}: the names of columns must be text, got {odd[0]!r} ({type(odd[0]).__name__}); set frame.columns"
        )
    return Source(what, frame)


def _open_file(path: str | Path) -> Source:
    name = str(path)
    place = Path(path)
    if not place.exists() and "*" not in name:
        raise FileNotFoundError(f"{name}: no such file; expected one of {', '.join(FILES)}")
    if not place.is_dir() and not name.endswith(FILES):
        raise ValueError(f"{name}: expected the ending {', '.join(FILES)}; load_atomic reads .inter files")
    text = name.removesuffix(".gz").endswith((".csv", ".tsv"))
    with _reading(name):
        if text:
            separator = "\t" if name.removesuffix(".gz").endswith(".tsv") else ","
            table = pl.scan_csv(path, separator=separator, infer_schema=False)
        else:
            table = pl.scan_parquet(place / "**/*.parquet" if place.is_dir() else path)
        table.collect_schema()
    return Source(name, nw.from_native(table), not text, not text)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What polars says of a file it cannot read, in one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as reason:
        raise ValueError(f"{name}: cannot be read ({' '.join(str(reason).split())[:200]}); write it again") from None


def _column(column: nw.Series[Any]) -> pl.Series:
    """A column as one of polars."""
    try:
        return column.to_polars()
    except Exception:  # what a library raises whose column holds several types, or that is not there
        values = [None if _missing(value) else value for value in column.to_list()]
    try:
        return pl.Series(column.name, values, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(column.name, values, dtype=pl.Object)


def _missing(value: object) -> bool:
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def find_column(source: Source, given: str | None, names: Sequence[str], what: str, call: str) -> str:
    """The column that is given, or the one that is called by one of the usual names.

    Args:
        source: the table.
        given: its name, if the caller says it.
        names: usual ones, in lower case and letters alone, the likeliest first.
        what: what it is, the argument that names it.
        call: what was called, for messages.

    Raises:
        ValueError: if there is none, or more than one; names the columns.
    """
    have = f"it has {_listed(source.columns)}"
    if given is not None:
        if given not in source.columns:
            raise ValueError(f"{source.name}: no column {given!r}; {have}{_in_the_index(source, given)}")
        return given
    usual: Mapping[str, list[str]] = {name: [] for name in names}
    for column in source.columns:
        usual.get("".join(filter(str.isalnum, column.lower())), []).append(column)
    found = [column for columns in usual.values() for column in columns]
    if not found:
        raise ValueError(
            f"{source.name}: no column is called {what}_id or the like; {have}: pass "
            f"{call}(..., {what}='NAME'){_in_the_index(source, *names)}"
        )
    certain = usual[names[0]] + usual[names[1]]
    if len(certain or found) > 1:
        raise ValueError(
            f"{source.name}: more than one column may be the {what}: {_listed(certain or found)}; pass "
            f"{call}(..., {what}={found[0]!r}) or another"
        )
    return (certain or found)[0]


def _in_the_index(source: Source, *names: str) -> str:
    """What is to be said where pandas has a column in its index."""
    index = getattr(getattr(nw.to_native(source.table), "index", None), "names", None) or ()
    inside = [
        name
        for name in index
        if isinstance(name, str) and ("".join(filter(str.isalnum, name.lower())) in names or name in names)
    ]
    return f"; {inside[0]!r} is in the index: pass frame.reset_index()" if inside else ""


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    return f"{names[:most]}{f' and {len(names) - most} more' if len(names) > most else ''}"
