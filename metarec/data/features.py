"""Feature vectors of items, read from the files people have them in, as modalities of a catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.table import Table, read_table
from metarec.data.vocabulary import Vocabulary, check_text
from metarec.data.warned import warn
from metarec.types import Modality


@dataclass(frozen=True)
class FeatureRows:
    """Feature vectors as a file gives them.

    Attributes:
        source: the file, for messages.
        ids: (n,) item ids, each once.
        values: (n, F) float32, finite.
    """

    source: Path | str
    ids: pl.Series
    values: NDArray[np.float32]


def load_modality(name: str, path: Path, items: Vocabulary) -> tuple[Modality, dict[str, int]]:
    """Read a feature file and put its rows in the order of the item vocabulary.

    The end of the file's name says its form:

    - ``.npz``: arrays ``ids`` (n,) and ``feat`` (n,F);
    - ``.pth`` or ``.pt``: ``{item_id: tensor (F,)}``, or ``{"item_id": [n ids], "embs": tensor (n,F)}``;
    - ``.npy``: (n,F), with the ids in ``<stem>.ids.txt`` (one a line) or ``<stem>.ids.npy``;
    - anything else: an atomic file with ``item_id:token`` and one ``:float_seq`` column (or one called ``name``),
      its numbers separated by blanks; an empty cell is an item without features.

    Nothing is unpickled. Half, single and double precision are accepted and become float32.

    Args:
        name: the modality's name.
        path: the feature file.
        items: the item vocabulary; I = ``items.size``.

    Returns:
        The modality, features (I,F), and what did not fit: rows of items outside the vocabulary (ignored), rows of
        zeros (taken for missing) and items without features (``present`` False). Only counts above zero are listed.

    Warns:
        UserWarning: if most rows are of unknown items and most items get no features.

    Raises:
        FileNotFoundError: if the file, or the ids of a ``.npy`` file, are missing.
        ValueError: if the file's content is not as above, an item has two rows, a feature is not finite, or
            every row is of an unknown item or of zeros.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "text.npz"
        >>> np.savez(path, ids=np.array(["b", "z"]), feat=np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> text, dropped = load_modality("text", path, Vocabulary(["a", "b"]))
        >>> text.features.tolist(), text.present.tolist()
        ([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]], [False, False, True])
        >>> dropped
        {'text: rows of unknown items': 1, 'text: items without features': 1}
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such feature file (modality {name!r})")
    read = {".npz": _read_npz, ".pth": _read_torch, ".pt": _read_torch, ".npy": _read_npy}.get(path.suffix)
    return align(name, read(path) if read else table_features(read_table(path), name), items)


def align(name: str, rows: FeatureRows, items: Vocabulary) -> tuple[Modality, dict[str, int]]:
    """Put feature rows in the order of the item vocabulary; see ``load_modality``.

    Raises:
        ValueError: if every row is of an unknown item or of zeros.
    """
    codes = encode(rows.ids, items)
    known, filled = codes > 0, rows.values.any(1)
    if not known.any():
        raise ValueError(
            f"{rows.source}: all {len(codes)} rows are of items that the data do not have{_both(rows, items)}"
        )
    given = known & filled
    if not given.any():
        raise ValueError(f"{rows.source}: every row of a known item is zeros, which are taken for missing features")
    unknown, missing = int((~known).sum()), len(items) - int(given.sum())
    if 2 * unknown > len(codes) and 2 * missing > len(items):
        warn(
            f"{rows.source}: {unknown:,} of {len(codes):,} rows are of items that the data do not have, and "
            f"{missing:,} of {len(items):,} items have no features{_both(rows, items, codes)}"
        )
    features = torch.zeros(items.size, rows.values.shape[1])
    present = torch.zeros(items.size, dtype=torch.bool)
    where = torch.from_numpy(codes[given])
    features[where] = torch.from_numpy(rows.values[given])
    present[where] = True
    counts = {
        f"{name}: rows of unknown items": unknown,
        f"{name}: rows of zeros": int((known & ~filled).sum()),
        f"{name}: items without features": missing,
    }
    return Modality(name, features, present), {what: count for what, count in counts.items() if count}


def _both(rows: FeatureRows, items: Vocabulary, codes: NDArray[np.int64] | None = None) -> str:
    """What the ids of both look like, where they do not meet."""
    row = 0 if codes is None else int(np.flatnonzero(codes == 0)[0])
    item = 0 if codes is None else int(np.flatnonzero(~np.isin(np.arange(1, items.size), codes))[0])
    return (
        f"; its ids look like {rows.ids[row]!r}, those of the data like {items.ids[item]!r}: do both files use the "
        "same ids?"
    )


def encode(ids: pl.Series, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Codes of a column of ids, (n,) int64, 0 where the id is not in the vocabulary.

    The column form of ``Vocabulary.encode``.
    """
    codes = ids.cast(pl.Enum(vocabulary.texts), strict=False).to_physical().cast(pl.Int64) + 1
    return codes.fill_null(0).to_numpy()


def by_item(ids: pl.Series, columns: Mapping[str, pl.Series], items: Vocabulary) -> dict[str, list[str]]:
    """Columns of text, one value per id, as attributes of all items of the vocabulary; ``""`` where there is none."""
    row = np.full(len(items), -1)
    row[encode(ids, items) - 1] = np.arange(len(ids))
    where = pl.Series(row)
    where = where.set(where < 0, None)
    return {name: column.gather(where).fill_null("").to_list() for name, column in columns.items()}


def table_features(table: Table, name: str) -> FeatureRows:
    """The features in an atomic file's float_seq column.

    Raises:
        ValueError: if there is no such column, or a cell is not F finite numbers.
    """
    sequences = [column for column, kind in table.types.items() if kind == "float_seq"]
    if name not in sequences and len(sequences) != 1:
        raise ValueError(
            f"{table.path}: expected one float_seq column, or one called {name!r}, got {sequences or 'none'}"
        )
    column = name if name in sequences else sequences[0]
    cells = table.column(column, "float_seq").str.strip_chars()
    filled = np.flatnonzero((cells != "").to_numpy())
    if not len(filled):
        raise ValueError(f"{table.path}: column {column!r} holds no features")
    words = cells.gather(filled).str.replace_all(r"\s+", " ").str.split(" ")
    width = words.list.len().to_numpy()
    ragged = np.flatnonzero(width != width[0])
    if len(ragged):
        row = int(filled[ragged[0]])
        problem = f"{width[ragged[0]]} numbers, expected {width[0]} as on line {table.lines[int(filled[0])]}"
        raise table.error(row, column, problem)
    flat = words.explode()
    numbers = flat.cast(pl.Float32, strict=False).fill_null(float("nan")).to_numpy()
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        row, place = divmod(int(bad[0]), int(width[0]))
        problem = f"number {place + 1} is {flat[int(bad[0])]!r}, expected finite numbers separated by blanks"
        raise table.error(int(filled[row]), column, problem)
    return FeatureRows(table.path, table.unique_ids("item_id").gather(filled), numbers.reshape(len(filled), -1))


def _read_npz(path: Path) -> FeatureRows:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            names = [] if isinstance(arrays, np.ndarray) else arrays.files
            if "ids" not in names or "feat" not in names:
                raise ValueError(f"the arrays must be called 'ids' and 'feat'; it has {names}")
            ids, feat = _names(arrays["ids"]), arrays["feat"]
    except Exception as reason:  # whatever the parsers raise on what is no such file
        raise _not_read(path, reason, "np.savez(path, ids=np.asarray(ids, dtype=str), feat=feat)") from None
    return checked_rows(path, ids, feat)


def _read_npy(path: Path) -> FeatureRows:
    text, array = path.with_name(f"{path.stem}.ids.txt"), path.with_name(f"{path.stem}.ids.npy")
    if not text.is_file() and not array.is_file():
        raise FileNotFoundError(f"{path}: needs the item ids of its rows in {text.name} (one a line) or {array.name}")
    try:
        feat = _array(path)
        lines = text.read_text("utf-8-sig").rstrip("\n").split("\n") if text.is_file() else _array(array)
        ids = _names(lines)
    except Exception as reason:
        raise _not_read(path, reason, "np.save(path, feat), and the ids as text") from None
    return checked_rows(path, ids, feat)


def _array(path: Path) -> NDArray[Any]:
    """The array in a ``.npy`` file and in no other kind."""
    with path.open("rb") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _read_torch(path: Path) -> FeatureRows:
    form = '{item_id: tensor (F,)} or {"item_id": [n ids], "embs": tensor (n,F)}, saved with torch.save'
    try:
        held: Any = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as reason:
        raise _not_read(path, reason, form) from None
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{path}: expected {form}, got {'an empty' if isinstance(held, dict) else 'a'} {type(held)}")
    try:
        stacked = "item_id" in held and isinstance(held.get("embs"), Tensor)
        ids, feat = (held["item_id"], held["embs"]) if stacked else (list(held), _stack(held))
        names, values = _names(ids), (feat.detach().float() if feat.is_floating_point() else feat).numpy()
    except Exception as reason:
        raise _not_read(path, reason, form) from None
    return checked_rows(path, names, values)


def _stack(rows: dict[Any, Any]) -> Tensor:
    """The vectors of ``{item_id: tensor (F,)}``, (n,F)."""
    first = next(iter(rows))
    for key, row in rows.items():
        if not isinstance(row, Tensor) or row.ndim != 1 or row.shape != rows[first].shape:
            got = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
            raise ValueError(f"item {key!r}: got {got}, expected a tensor (F,) as long as that of {first!r}")
    return torch.stack(list(rows.values()))


def _names(ids: Sequence[Any] | NDArray[Any]) -> pl.Series:
    """Ids as strings, without the blanks around them."""
    names = [name.strip() for name in np.asarray(ids).astype(str).ravel().tolist()]
    check_text(names, "item id")
    return pl.Series("item_id", names, dtype=pl.String)


def checked_rows(path: Path | str, names: pl.Series, feat: NDArray[Any]) -> FeatureRows:
    """Ids, and features as finite float32, one row each.

    Raises:
        ValueError: if an id is empty or has two rows, or the features are not (n,F), of a float type and finite.
    """
    if feat.ndim != 2 or not np.issubdtype(feat.dtype, np.floating) or 0 in feat.shape:
        raise ValueError(f"{path}: expected features (n,F) of a float type, got {feat.shape} of {feat.dtype}")
    if len(names) != len(feat):
        raise ValueError(f"{path}: {len(names)} ids for {len(feat)} rows of features; each row needs its id")
    wrong = np.flatnonzero((~names.is_first_distinct() | (names == "")).to_numpy())
    if len(wrong):
        row = int(wrong[0])
        problem = (
            f"item {names[row]!r} has a row already; keep one row per item" if names[row] else "its item id is empty"
        )
        raise ValueError(f"{path}: row {row}: {problem}")
    with np.errstate(over="ignore"):
        values = feat.astype(np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        raise ValueError(
            f"{path}: row {row} (item {names[row]!r}), column {column}: {feat[row, column]} is not a finite float32"
        )
    return FeatureRows(path, names, values)


def _not_read(path: Path, reason: Exception, form: str) -> ValueError:
    why = (str(reason).splitlines() or [repr(reason)])[0]
    return ValueError(f"{path}: cannot be read ({why}); expected {form}")
