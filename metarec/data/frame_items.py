"""What a frame says of the items: their ids, titles, attributes and feature vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from metarec.data.attributes import Column, encoded, fit_encodings
from metarec.data.encodings import Encoding
from metarec.data.features import FeatureRows, align, by_item, checked_rows, encode, load_modality
from metarec.data.frame_rows import FrameRows, as_text, kinds_of, list_separator
from metarec.data.frame_source import FILES, Source, find_column, open_source
from metarec.data.vocabulary import Vocabulary
from metarec.data.warned import warn
from metarec.types import Modality

CALL = "Dataset.from_frame"
TITLE = "title"
TITLES = ("title", "name", "itemname", "itemtitle", "productname", "producttitle", "movietitle")


@dataclass(frozen=True)
class Items:
    """A table of items.

    Attributes:
        name: for messages.
        ids: of the rows, as text, each once.
        whole_numbers: whether the ids are such.
        columns: the attributes, as text.
        rows: how many rows there were.
        places: of each id among them.
        dropped: what is not read, and how much of it.
        learned: the columns to learn from, as they come, whether they are numbers, and their separators.
    """

    name: str
    ids: pl.Series
    whole_numbers: bool
    columns: Mapping[str, pl.Series]
    rows: int
    places: NDArray[np.int64]
    dropped: Mapping[str, int]
    learned: Mapping[str, tuple[pl.Series, bool, str]]

    def warn_if_apart(self, clicked: Vocabulary, codes: NDArray[np.int64], what: str) -> None:
        """Warn where no row is of what the clicks have: ids that are written in two ways.

        Args:
            clicked: the vocabulary that the clicks are coded by.
            codes: of the clicks.
            what: they are of: items or users.
        """
        there = np.zeros(clicked.size, dtype=np.bool_)
        there[codes] = True
        if not len(self.ids) or there[encode(self.ids, clicked)].any():
            return
        some = clicked.decode(dict.fromkeys(codes[:20].tolist()))[:3]
        warn(
            f"{self.name}: none of its {len(self.ids):,} rows is of {what}s of the clicks; its ids look like "
            f"{self.ids.head(3).to_list()}, those of the clicks like {some}"
        )

    def attributes(self, items: Vocabulary) -> dict[str, list[str]]:
        """As those of a catalogue."""
        return by_item(self.ids, self.columns, items)

    def encodings(
        self, items: Vocabulary, given: Mapping[str, Encoding] = MappingProxyType({})
    ) -> tuple[Mapping[str, Encoding], dict[str, Modality]]:
        """Of the columns that are learned from, those that are given or new ones, and the modality that they make.

        Raises:
            ValueError: as :func:`~metarec.data.attributes.fit_encodings`.
        """
        if not self.learned:
            return {}, {}
        row, codes = np.full(len(items), -1), encode(self.ids, items)
        row[codes[codes > 0] - 1] = np.flatnonzero(codes > 0)
        where = pl.Series(row)
        where = where.set(where < 0, None)
        columns = {
            name: Column(column.gather(where).to_list(), numbers, separator)
            for name, (column, numbers, separator) in self.learned.items()
        }
        if given:
            modality = encoded(given, {name: columns[name].cells for name in given})
            return given, {modality.name: modality}
        encodings, modality = fit_encodings(columns, self.name)
        return encodings, {modality.name: modality}


def read_items(
    source: Source,
    given: str,
    names: Sequence[str],
    title: str | None,
    learned: Mapping[str, str | None],
    what: str = "item",
) -> Items:
    """Read a table of items.

    Args:
        source: the table.
        given: the column of ids, if it has that, and else one that is called by one of ``names``.
        names: see :func:`find_column`.
        title: the column of titles; None for the first that is called like one.
        learned: columns to learn from, and what separates several values in a text, if anything does.

        what: the rows are of: items or users.

    Raises:
        ValueError: if a column is not there, an id stands twice or is none, or a column to learn from is of no kind
            that can be.
    """
    key = find_column(source, given if given in source.columns else None, names, what, CALL)
    if title is not None:
        find_column(source, title, TITLES, TITLE, CALL)
    types = kinds_of(source.head)
    for name in learned:
        find_column(source, name, (), "attributes", CALL)
    texts = [
        name for name in source.columns if name != key and (name in learned or _is_text(source.head[name], types[name]))
    ]
    frame = source.whole([key, *texts])
    rows = FrameRows(source.name, types, frame)
    there = rows.filled(key)
    full = rows.filter(there)
    ids = full.ids(key)
    repeated = np.flatnonzero((~ids.is_first_distinct()).to_numpy())
    if len(repeated):
        raise full.error(int(repeated[0]), key, "stands in a row before already; keep one row for each")
    usual = [name for name in texts if "".join(filter(str.isalnum, name.lower())) in TITLES]
    named = title or next(
        iter(sorted(usual, key=lambda n: TITLES.index("".join(filter(str.isalnum, n.lower()))))), None
    )
    kinds = {name: _learned(source, full, name, learned[name]) for name in learned}
    columns = {TITLE if name == named else name: as_text(full.frame[name]) for name in texts}
    lost = {
        f"{source.name}: rows without {key}": int((~there).sum()),
        f"{source.name}: columns that are not read": len(source.columns) - 1 - len(texts),
    }
    dropped = {what: count for what, count in lost.items() if count}
    whole = frame[key].dtype.is_numeric()
    return Items(source.name, ids, whole, columns, len(frame), np.flatnonzero(there), dropped, kinds)


def _learned(source: Source, rows: FrameRows, name: str, separator: str | None) -> tuple[pl.Series, bool, str]:
    """A column to learn from, whether it is of numbers, and what separates several values in its text."""
    column = rows.frame[name]
    dtype = column.dtype
    if isinstance(dtype, pl.List | pl.Array) and (dtype.inner.is_integer() or dtype.inner == pl.String):
        return column, False, list_separator(column)
    text = dtype in (pl.String, pl.Categorical, pl.Boolean) or isinstance(dtype, pl.Enum)
    if text and (separator is not None or source.typed or rows.types[name] != "float"):
        return column.cast(pl.String), False, separator or ""
    if text or dtype.is_numeric():
        rows.check_numbers(name)
        return column, True, ""
    wanted = "attributes are text, lists of text, or numbers: make dates numbers, and give vectors as features="
    if dtype == pl.Object:
        raise rows.mixed(name, wanted)
    raise ValueError(f"{source.name}: column {name!r} is {dtype}; {wanted}")


def _is_text(column: pl.Series, kind: str) -> bool:
    """Whether a column can be an attribute: no vector, and nothing nested or without a text of its own."""
    inner = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else column.dtype
    return kind != "float_seq" and not isinstance(
        inner, pl.Struct | pl.Binary | pl.Object | pl.List | pl.Array | pl.Null
    )


def features_of(
    features: Mapping[str, Any], items: Vocabulary, known: Items | None, names: Sequence[str]
) -> tuple[dict[str, Modality], dict[str, int]]:
    """The modalities, and what did not fit.

    Args:
        features: name -> vectors: an array with a row for each row of the items, a mapping from id to vector, a frame
            or file with a column of ids, or a file that ``load_atomic`` reads.
        items: the vocabulary.
        known: the table of items.
        names: of the column of ids.

    Raises:
        TypeError, ValueError: if vectors are not as described.
    """
    if not isinstance(features, Mapping):
        raise TypeError(f"features: expected a mapping such as {{'text': vectors}}, got {type(features).__name__}")
    found: dict[str, Modality] = {}
    dropped: dict[str, int] = {}
    for name, given in features.items():
        if isinstance(given, str | Path) and not str(given).endswith(FILES):
            found[name], counts = load_modality(name, Path(given), items)
        else:
            found[name], counts = align(name, _rows(f"features[{name!r}]", given, items, known, names), items)
        dropped |= counts
    return found, dropped


def _rows(where: str, given: Any, items: Vocabulary, known: Items | None, names: Sequence[str]) -> FeatureRows:
    if isinstance(given, Mapping):
        values = [_array(f"{where}: item {item!r}", vector) for item, vector in given.items()]
        odd = next((n for n, vector in enumerate(values) if vector.shape != values[0].shape or vector.ndim != 1), None)
        if odd is not None:
            raise ValueError(
                f"{where}: item {list(given)[odd]!r} has a vector of shape {values[odd].shape}, expected one row of "
                f"numbers, as many for each item"
            )
        matrix = np.stack(values) if values else np.zeros((0, 0), dtype=np.float32)
        return checked_rows(where, _texts(given), matrix)
    if isinstance(given, str | Path) or hasattr(given, "columns") or hasattr(given, "__arrow_c_stream__"):
        return _frame_rows(where, given, items, names)
    matrix = _array(where, given)
    if known is None or len(matrix) != known.rows or matrix.ndim != 2:
        rows = "but no items are given" if known is None else f"as items has {known.rows} rows"
        raise ValueError(
            f"{where}: an array must have a row for each row of items, got shape {matrix.shape}, {rows}; or give a "
            "mapping from id to vector, or a frame with a column of ids"
        )
    return checked_rows(where, known.ids, matrix[known.places])


def _frame_rows(where: str, given: Any, items: Vocabulary, names: Sequence[str]) -> FeatureRows:
    """Vectors in a frame: one column of lists, or a column for each number."""
    source = open_source(given, where)
    key = find_column(source, names[0] if names[0] in source.columns else None, names[1:], "item", CALL)
    types = kinds_of(source.head)
    lists = [name for name in source.columns if types[name] == "float_seq"]
    columns = lists or [name for name in source.columns if name != key and source.head[name].dtype.is_numeric()]
    if len(lists) > 1 or not columns:
        raise ValueError(
            f"{where}: expected one column of vectors, or columns of numbers, beside {key!r}, got {lists or 'none'}"
        )
    rows = FrameRows(source.name, types, source.whole([key, *columns]))
    full = rows.filter(rows.filled(key) & (rows.filled(lists[0]) if lists else True))
    if not lists:
        matrix = np.stack([full.frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in columns], 1)
        return checked_rows(where, full.ids(key), matrix)
    width = full.frame[lists[0]].list.len() if isinstance(full.frame[lists[0]].dtype, pl.List) else None
    if width is not None and width.n_unique() > 1:
        row = int((width != width[0]).arg_max() or 0)
        raise full.error(row, key, f"has a vector of {width[row]} numbers, expected {width[0]} as the first row has")
    flat = full.frame[lists[0]].explode().cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return checked_rows(where, full.ids(key), flat.reshape(len(full), -1))


def _texts(ids: Any) -> pl.Series:
    return pl.Series([str(name) for name in ids], dtype=pl.String)


def _array(where: str, given: Any) -> NDArray[Any]:
    """Numbers as an array of a float type."""
    if isinstance(given, torch.Tensor):
        return given.detach().cpu().float().numpy()
    try:
        array = np.asarray(given)
        return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float32)
    except (TypeError, ValueError) as reason:
        raise ValueError(f"{where}: expected numbers, got {type(given).__name__} ({reason})") from None
