"""Tab-separated files with a typed header (RecBole's atomic files), read as strings and checked."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from metarec.data.clock import Times

TYPES = ("token", "token_seq", "float", "float_seq")
SEVERAL = re.compile(rf":({'|'.join(TYPES)})[\s,;|]+\w")  # a column that holds a whole other one
SHOWN = 80  # characters of a cell that a message shows
BLOCK = 1 << 21  # bytes of a file that are held as strings at a time


@dataclass(frozen=True)
class Table:
    """The rows of one atomic file, cells still as written.

    Attributes:
        path: the file.
        types: column name -> one of token, token_seq, float, float_seq, in file order.
        cells: one list of strings per row, as long as ``types``.
        lines: the line of the file (from 1) that each row stands on.
    """

    path: Path
    types: Mapping[str, str]
    cells: pl.Series
    lines: pl.Series

    def __len__(self) -> int:
        return len(self.cells)

    def column(self, name: str, kind: str) -> pl.Series:
        """The cells of one column.

        Raises:
            ValueError: if the column is missing or its header type is not ``kind``.
        """
        if self.types.get(name) != kind:
            got = " ".join(f"{column}:{declared}" for column, declared in self.types.items())
            problem = f"column {name!r} has the wrong type" if name in self.types else f"no column {name!r}"
            raise ValueError(f"{self.path}: {problem}; expected {name}:{kind} in the tab-separated header, got {got}")
        return self.cells.list.get(list(self.types).index(name))

    def ids(self, name: str) -> pl.Series:
        """The cells of a token column that may not be empty, without the blanks around them.

        Raises:
            ValueError: if the column is missing, not a token, or has an empty cell.
        """
        column = self.column(name, "token").str.strip_chars()
        empty = column == ""
        if empty.any():
            raise self.error(int(empty.arg_max() or 0), name, "is empty, expected an id; fill it or remove the line")
        return column

    def unique_ids(self, name: str) -> pl.Series:
        """The cells of a token column in which every id stands once.

        Raises:
            ValueError: as for ``ids``, and if an id appears on two lines.
        """
        column = self.ids(name)
        repeated = ~column.is_first_distinct()
        if repeated.any():
            row = int(repeated.arg_max() or 0)
            first = self.lines[int((column == column[row]).arg_max() or 0)]
            raise self.error(row, name, f"{column[row]!r} stands on line {first} already; keep one row per item")
        return column

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(n,) the numbers in a float or token column.

        Raises:
            ValueError: if there is no such column, or a cell is not a finite number.
        """
        text = self.column(name, "token" if self.types.get(name) == "token" else "float").str.strip_chars()
        number = text.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        bad = np.flatnonzero(~np.isfinite(number))
        if len(bad):
            raise self.error(int(bad[0]), name, f"{text[int(bad[0])]!r} is not a finite number")
        return number

    def times(self, name: str) -> Times:
        """(n,) the times in a float column, in full precision.

        Raises:
            ValueError: if there is no such column, or a cell is not a finite number.
        """
        return times_of_text(self.column(name, "float").str.strip_chars(), lambda row, why: self.error(row, name, why))

    def said(self, name: str) -> str:
        """A column as messages show it."""
        return f"'{name}:{self.types[name]}'"

    def filter(self, kept: NDArray[np.bool_]) -> Table:
        """Some of the rows; ``kept`` is an (n,) mask."""
        rows = pl.Series(kept)
        return Table(self.path, self.types, self.cells.filter(rows), self.lines.filter(rows))

    def error(self, row: int, column: str, problem: str) -> ValueError:
        """The error that says which cell is wrong and why."""
        return ValueError(f"{self.path}: line {self.lines[row]}, column {column!r}: {problem}")


def times_of_text(text: pl.Series, error: Callable[[int, str], ValueError]) -> Times:
    """(n,) times that are written as numbers, whole ones as int64.

    Args:
        text: without blanks around it.
        error: makes the error of a row and a problem.

    Raises:
        ValueError: if one is not a finite number.
    """
    whole = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole.to_numpy()
    number = text.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    bad = np.flatnonzero(~np.isfinite(number))
    if len(bad):
        row = int(bad[0])
        raise error(row, f"{text[row]!r} is not a finite number; expected a time in unix seconds, such as 1362062838")
    if (number == np.floor(number)).all():
        whole = whole.fill_null(pl.Series(number).cast(pl.Int64, strict=False))
    return number if whole.null_count() else whole.to_numpy()


def read_table(path: Path) -> Table:
    """Read an atomic file, plain or gzipped; blank lines are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or not text, the header is not typed, or a row has too few or too many fields.
    """
    blocks = list(read_blocks(path))
    cells, lines = (pl.concat([getattr(block, name) for block in blocks]) for name in ("cells", "lines"))
    return Table(path, blocks[0].types, cells, lines)


def read_blocks(path: Path, size: int = BLOCK) -> Iterator[Table]:
    """The rows of an atomic file in tables of about ``size`` bytes each, at least one, for files larger than memory.

    Raises:
        FileNotFoundError: as for ``read_table``.
        ValueError: as for ``read_table``, when the block at fault is reached.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with _open(path) as file:
            header = _text(path, file.readline(), 1)
            if not header:
                raise ValueError(f"{path}: the file is empty; expected a header such as user_id:token and rows")
            types = MappingProxyType(_types(path, header.rstrip("\r\n")))
            line, block = 2, file.read(size) + file.readline()
            while True:
                yield _rows(path, types, _text(path, block, line), line)
                line += block.count(b"\n")
                block = file.read(size) + file.readline()
                if not block:
                    return
    except (EOFError, zlib.error, gzip.BadGzipFile) as reason:
        raise ValueError(f"{path}: the gzipped file is damaged ({reason}); write or copy it again") from None


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    """The bytes of a file, unzipped if it begins as a gzipped file does."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")


def _text(path: Path, block: bytes, line: int) -> str:
    """The text of a block that begins on this line of the file, its lines ended by a newline alone."""
    try:
        return block.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as reason:
        line += block.count(b"\n", 0, reason.start)
        raise ValueError(
            f"{path}: not a UTF-8 text file, plain or gzipped (line {line}: {reason.reason}); save it as UTF-8"
        ) from None


def _rows(path: Path, types: Mapping[str, str], text: str, line: int) -> Table:
    """The rows of a block whose first line is this line of the file."""
    lines = pl.Series([text], dtype=pl.String).str.split("\n").explode()
    filled = lines != ""
    number = pl.Series("line", np.arange(line, line + len(lines))).filter(filled)
    cells = lines.filter(filled).str.split("\t")
    ragged = cells.list.len() != len(types)
    if ragged.any():
        row = int(ragged.arg_max() or 0)
        raise ValueError(
            f"{path}: line {number[row]} has {len(cells[row])} tab-separated fields, "
            f"expected {len(types)} as in the header ({', '.join(types)})"
        )
    return Table(path, types, cells, number)


def _types(path: Path, header: str) -> dict[str, str]:
    """Column name -> type, from the header line."""
    types: dict[str, str] = {}
    if "\r" in header:
        raise ValueError(f"{path}: lines end in carriage returns alone; save it with ordinary ends of lines")
    for column in header.lstrip("\ufeff").split("\t"):
        name, _, kind = (part.strip() for part in column.rpartition(":"))
        if SEVERAL.search(column):
            raise ValueError(
                f"{path}: the columns must be separated by tabs, but one column of the header is {_short(column)}; "
                "replace what stands between the columns by tabs, in all lines"
            )
        if not name or kind not in TYPES:
            raise ValueError(
                f"{path}: header column {_short(column)} is not name:type with type one of {', '.join(TYPES)}; "
                "write e.g. user_id:token, columns separated by tabs"
            )
        if name in types:
            raise ValueError(f"{path}: column {name!r} appears twice in the header; rename or remove one")
        types[name] = kind
    return types


def _short(cell: str) -> str:
    """A cell as a message shows it."""
    return repr(cell if len(cell) <= SHOWN else f"{cell[:SHOWN]}...")
