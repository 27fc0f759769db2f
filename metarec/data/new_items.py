"""New items as a catalogue of their own, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.attributes import ATTRIBUTES, encoded
from metarec.data.containers import bare, check_labels, plain
from metarec.data.dataset import Catalog, Vocabulary
from metarec.data.vocabulary import Id
from metarec.functional.scaling import FeatureScale
from metarec.types import Modality

Vectors = Any  # array-like (n, F), or a mapping from id to array-like (F,)


def new_items(
    known: Catalog,
    scales: Mapping[str, FeatureScale],
    ids: Sequence[Id],
    vectors: Mapping[str, Vectors],
    attributes: Mapping[str, Sequence[Any]],
) -> Catalog:
    """New items with their features.

    Args:
        known: the catalogue that they will be added to.
        scales: of the modalities that the model uses, by name.
        ids: of the new items.
        vectors: per modality, in the order of the ids or by id.
        attributes: per column of the catalogue, one string per id; of one that is learned from, its values.

    Raises:
        ValueError: see :meth:`Recommender.add_items <metarec.Recommender.add_items>`.
    """
    names = Vocabulary(map(bare, plain(ids, "add_items")), known.items.what)
    kind, wrong = (int, "is not a whole number") if known.items.whole_numbers else (str, "is not a string")
    for name in names.ids:
        if type(name) is not kind or name in known.items:
            why = "is in the catalogue already; restore_items shows a removed one again" if name in known.items else ""
            raise ValueError(f"add_items: item id {name!r} {why or wrong}")
    modalities: dict[str, Modality] = {}
    for name, given in vectors.items():
        if name not in scales:
            raise ValueError(f"add_items: the model has no modality {name!r}; it has {sorted(scales)}")
        modalities[name] = _modality(name, known[name].dim, names, given)
    learned, columns = _attributes(known, names, attributes)
    return Catalog(names, modalities | learned, columns)


def _attributes(
    known: Catalog, items: Vocabulary, given: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Modality], dict[str, Sequence[str]]]:
    """The modality of the attributes that are learned from, and all attributes as text."""
    columns: dict[str, Sequence[str]] = {}
    cells: dict[str, Sequence[Any]] = {}
    for name, values in given.items():
        if name in known.encodings:
            cells[name] = _cells(name, items, values)
            columns[name] = [_text(known, name, *each) for each in zip(items.ids, cells[name], strict=True)]
            continue
        check_labels(values, items.ids, f"add_items: attribute {name!r}")
        columns[name] = texts = [bare(value) for value in plain(values, f"add_items: attribute {name!r}")]
        if name not in known.attributes or len(texts) != len(items):
            raise ValueError(
                f"add_items: attribute {name!r} needs {len(items)} values and to be one of "
                f"{sorted(known.attributes)}, got {len(texts)} values"
            )
    if not cells:
        return {}, columns
    nothing = [None] * len(items)
    return {ATTRIBUTES: encoded(known.encodings, {n: cells.get(n, nothing) for n in known.encodings})}, columns


def _text(known: Catalog, name: str, item: Id, cell: Any) -> str:
    try:
        return known.encodings[name].text(cell)
    except ValueError as problem:
        raise ValueError(f"add_items: attribute {name!r} of item {item!r}: {problem}") from None


def _cells(name: str, items: Vocabulary, given: Any) -> Sequence[Any]:
    """The values of an attribute that is learned from, one cell per item."""
    if isinstance(given, Mapping):
        _check_ids(name, given, items)
        return [given.get(item) for item in items.ids]
    check_labels(given, items.ids, f"add_items: attribute {name!r}")
    cells = plain(given, f"add_items: attribute {name!r}")
    if len(cells) != len(items):
        raise ValueError(f"add_items: attribute {name!r} needs {len(items)} values, got {len(cells)}")
    return cells


def _check_ids(name: str, given: Mapping[Any, Any], items: Vocabulary) -> None:
    strange = sorted(set(given) - set(items.ids))
    if strange:
        raise ValueError(f"add_items: {name} has a vector or value of {strange[0]!r}, which is not one of the new ids")


def _modality(name: str, dim: int, items: Vocabulary, given: Vectors) -> Modality:
    features, present = torch.zeros(items.size, dim), torch.zeros(items.size, dtype=torch.bool)
    if isinstance(given, Mapping):
        _check_ids(name, given, items)
        codes = items.encode(list(given))
        rows = [_array(name, item, vector, dim) for item, vector in given.items()]
    else:
        whole = _rows(name, items, given)
        if len(whole) != len(items):
            raise ValueError(f"add_items: {name} needs one vector for each of the {len(items)} ids, got {len(whole)}")
        codes = np.arange(1, items.size)
        rows = [_array(name, i, row, dim) for i, row in zip(items.ids, whole, strict=True)]
    values = np.stack(rows) if rows else np.zeros((0, dim), dtype=np.float32)
    features[codes], present[codes] = torch.from_numpy(values), torch.from_numpy(values.any(1))
    return Modality(name, features, present)


def _rows(name: str, items: Vocabulary, given: Vectors) -> Any:
    """One vector after the other, from a matrix or a container of vectors."""
    if isinstance(given, torch.Tensor):
        return given
    check_labels(given, items.ids, f"add_items: {name}")
    if isinstance(given, np.ndarray) or hasattr(type(given), "columns"):
        return np.atleast_1d(np.asarray(given))
    return plain(given, f"add_items: {name}")


def _array(name: str, item: str, vector: Any, dim: int) -> NDArray[np.float32]:
    if isinstance(vector, torch.Tensor):
        vector = vector.detach().cpu().double().numpy()  # numpy has no bfloat16
    try:
        with np.errstate(over="ignore"):
            row = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"add_items: {name} of item {item!r} must be {dim} numbers: {error}") from error
    if row.shape != (dim,):
        raise ValueError(f"add_items: {name} of item {item!r} must have shape ({dim},), got {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError(
            f"add_items: {name} of item {item!r} is not finite in column {int(np.argmin(np.isfinite(row)))}"
        )
    return row
