"""Tab-separated files with a typed header (RecBole's atomic files), read as strings and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl

TYPES = ("token", "token_seq", "float", "float_seq")


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
        """The cells of a token column that may not be empty.

        Raises:
            ValueError: if the column is missing, not a token, or has an empty cell.
        """
        column = self.column(name, "token")
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

    def error(self, row: int, column: str, problem: str) -> ValueError:
        """The error that says which cell is wrong and why."""
        return ValueError(f"{self.path}: line {self.lines[row]}, column {column!r}: {problem}")


def read_table(path: Path) -> Table:
    """Read an atomic file, plain or gzipped; blank lines are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or not text, the header is not typed, or a row has too few or too many fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        whole_lines = pl.read_csv(
            path, separator="\0", quote_char=None, has_header=False, infer_schema=False, glob=False
        )
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty; expected a header such as user_id:token and rows") from None
    except pl.exceptions.PolarsError as reason:
        raise ValueError(f"{path}: not a UTF-8 text file, plain or gzipped ({str(reason).splitlines()[0]})") from None
    lines = whole_lines.to_series()
    types = _types(path, str(lines[0] or ""))
    filled = lines.is_not_null()
    filled[0] = False
    number = pl.Series("line", np.arange(1, len(lines) + 1)).filter(filled)
    cells = lines.filter(filled).str.split("\t")
    ragged = cells.list.len() != len(types)
    if ragged.any():
        row = int(ragged.arg_max() or 0)
        raise ValueError(
            f"{path}: line {number[row]} has {len(cells[row])} tab-separated fields, "
            f"expected {len(types)} as in the header ({', '.join(types)})"
        )
    return Table(path, MappingProxyType(types), cells, number)


def _types(path: Path, header: str) -> dict[str, str]:
    """Column name -> type, from the header line."""
    types: dict[str, str] = {}
    for column in header.lstrip("\ufeff").split("\t"):
        name, _, kind = column.rpartition(":")
        if not name or kind not in TYPES:
            raise ValueError(
                f"{path}: header column {column!r} is not name:type with type one of {', '.join(TYPES)}; "
                "write e.g. user_id:token, columns separated by tabs"
            )
        if name in types:
            raise ValueError(f"{path}: column {name!r} appears twice in the header; rename or remove one")
        types[name] = kind
    return types
