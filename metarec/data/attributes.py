"""Encoded attributes side by side: one modality of items, or the profiles of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from metarec.data.encodings import Categories, Encoding, Numbers, encoding_of
from metarec.types import Modality

ATTRIBUTES = "attributes"  # the modality that they make


def encodings_settings(encodings: Mapping[str, Encoding]) -> list[Any]:
    """Encodings by column as plain JSON; a list, since the order of the columns is that of the features.

    Example:
        >>> encodings_settings({"price": Numbers((0.0, 1.0))})
        [['price', {'knots': [0.0, 1.0]}]]
    """
    return [[name, encoding.settings()] for name, encoding in encodings.items()]


def encodings_of(said: Any) -> dict[str, Encoding]:
    """The encodings that :func:`encodings_settings` told of, in their order.

    Raises:
        ValueError: if they are not told so, or a column stands twice.

    Example:
        >>> encodings_of([["price", {"knots": [0.0, 1.0]}], ["kind", {"values": ["a"], "separator": ""}]])
        {'price': Numbers(knots=(0.0, 1.0)), 'kind': Categories(values=('a',), separator='')}
    """
    pairs = isinstance(said, list) and all(isinstance(one, list) and len(one) == 2 for one in said)
    if not pairs or not all(isinstance(name, str) for name, _ in said) or len({n for n, _ in said}) < len(said):
        raise ValueError(f"expected a list of columns, each once, with their encodings, got {said!r:.200}")
    return {name: encoding_of(settings) for name, settings in said}


def encoded(encodings: Mapping[str, Encoding], cells: Mapping[str, Sequence[Any]]) -> Modality:
    """Attributes side by side as one modality; an item has it that has any of them.

    Args:
        encodings: by column.
        cells: by column, one per item.

    Raises:
        ValueError: if what should be a number is none; names the column.

    Example:
        >>> made = encoded({"price": Numbers((1.0, 3.0))}, {"price": [3, None]})
        >>> made.name, made.features.tolist(), made.present.tolist()
        ('attributes', [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [False, True, False])
    """
    blocks, given = [], []
    for name, encoding in encodings.items():
        try:
            rows = encoding.rows(cells[name])
        except ValueError as problem:
            raise ValueError(f"column {name!r}: {problem}") from None
        blocks.append(F.pad(rows, (0, 0, 1, 0)))
        given.append(torch.cat([torch.zeros(1), 1 - rows[:, -1]]) > 0)
    present = torch.stack(given).any(0)
    return Modality(ATTRIBUTES, torch.cat(blocks, 1) * present.unsqueeze(1), present)


@dataclass(frozen=True)
class Column:
    """The cells of one attribute.

    Attributes:
        cells: one per item.
        numbers: whether they are numbers, and no categories.
        separator: of several values in one text; ``""`` where a text is one value.
    """

    cells: Sequence[Any]
    numbers: bool = False
    separator: str = ""


def fit_encodings(columns: Mapping[str, Column], where: str) -> tuple[dict[str, Encoding], Modality]:
    """The encodings of attributes, fitted to the cells of all items, and the modality that they make.

    Args:
        columns: by name.
        where: the table, for messages.

    Raises:
        ValueError: if no two items share a value of a column, or what should be a number is none.

    Example:
        >>> encodings, made = fit_encodings({"genre": Column(["War", "War", ""])}, "items")
        >>> encodings["genre"].values, made.features[1:].tolist()
        (('War',), [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    """
    encodings: dict[str, Encoding] = {}
    for name, column in columns.items():
        try:
            fitted = Numbers.of(column.cells) if column.numbers else Categories.of(column.cells, column.separator)
        except ValueError as problem:
            raise ValueError(f"{where}: column {name!r}: {problem}") from None
        encodings[name] = fitted
    return encodings, encoded(encodings, {name: column.cells for name, column in columns.items()})
