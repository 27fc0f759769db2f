"""Attributes of items and users as feature columns: categories, several values at once, and numbers.

A row holds the mean of one-hot codes of its values, so that a linear projection ``W f`` of it is the mean of one
trained embedding per value: an embedding bag. Every engine of the inner loop knows such a product, and it has a second
derivative; ``benchmarks/attributes.py`` times it against gathering and averaging the embeddings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from metarec.data.containers import bare, is_single
from metarec.functional.segments import segment_sum

VALUES = 512  # most values of one attribute that have a column; a text vector is about as wide
HELD_BY = 2  # items that share a value, or it says nothing of other items and counts as unseen
KNOTS = 16  # quantiles between which numbers are interpolated


@dataclass(frozen=True)
class Categories:
    """Values of a categorical attribute -> columns: one per frequent value, one for all others, one for none.

    What is not among the values (rare when it was fitted, or never seen) shares the last column but one, which is
    trained wherever rare values are; a missing value has the last column.

    Attributes:
        values: those with a column of their own.
        separator: what stands between several values written as one text; ``""`` where a text is one value.

    Example:
        >>> genres = Categories.of([["War"], ["War", "Drama"], ["Drama"], ["Noir"], []], " ")
        >>> genres.values
        ('Drama', 'War')
        >>> genres.rows(["War Drama", ["War", "Noir"], None]).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """

    values: tuple[str, ...]
    separator: str = ""

    def __post_init__(self) -> None:
        if len(set(self.values)) != len(self.values) or not all(isinstance(v, str) and v for v in self.values):
            raise ValueError(f"Categories: expected different texts as values, got {self.values!r:.200}")
        if not isinstance(self.separator, str):
            raise ValueError(f"Categories: expected a text as separator, got {self.separator!r}")

    @classmethod
    def of(cls, cells: Iterable[Any], separator: str = "") -> Self:
        """From the values that items have: the most frequent ``VALUES`` of those that two items share.

        Raises:
            ValueError: if there is no such value, so that the attribute tells nothing of one item to another.
        """
        unfitted = cls((), separator)
        held = Counter(value for cell in cells for value in set(unfitted.split(cell)))
        shared = [value for value, count in held.items() if count >= HELD_BY]
        if not shared:
            raise ValueError(
                f"no two items share one of its {len(held):,} values; expected categories that items share"
            )
        return cls(tuple(sorted(shared, key=lambda value: (-held[value], value))[:VALUES]), separator)

    @property
    def dim(self) -> int:
        """F, how many columns."""
        return len(self.values) + 2

    @cached_property
    def _column(self) -> dict[str, int]:
        return {value: column for column, value in enumerate(self.values)}

    def split(self, cell: Any) -> list[str]:
        """The values in a cell: a text, a container of values, or nothing."""
        cell = bare(cell)
        if _missing(cell):
            return []
        if isinstance(cell, str):
            cell = cell.split(self.separator) if self.separator else [cell]
        cells = [cell] if is_single(cell) else list(cell)
        found = (_text(value) for value in cells if not _missing(bare(value)))
        return list(dict.fromkeys(value for value in found if value))

    def text(self, cell: Any) -> str:
        """A cell as one text."""
        return (self.separator or " ").join(self.split(cell))

    def rows(self, cells: Sequence[Any]) -> Tensor:
        """(n, F) of n cells, each row of sum 1."""
        other = len(self.values)
        columns = [[self._column.get(value, other) for value in self.split(cell)] or [other + 1] for cell in cells]
        count = torch.tensor([len(each) for each in columns])
        place = torch.arange(len(columns)).repeat_interleave(count) * self.dim
        at = place + torch.tensor([column for each in columns for column in each], dtype=torch.int64)
        share = (1 / count.float()).repeat_interleave(count)
        return segment_sum(share, at, len(columns) * self.dim).view(-1, self.dim)

    def settings(self) -> dict[str, Any]:
        """What makes it, as plain JSON."""
        return {"values": list(self.values), "separator": self.separator}


@dataclass(frozen=True)
class Numbers:
    """A numeric attribute -> columns: shares of the two nearest quantiles (piecewise linear), and one for none.

    Neither the unit nor outliers matter, and what is learned need not be linear in the number.

    Source: Gorishniy, Rubachev and Babenko, On Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS
    2022, whose bins these are; here a column holds the nearness to an edge.

    Attributes:
        knots: ascending quantiles.

    Example:
        >>> price = Numbers((1.0, 3.0, 10.0))
        >>> price.rows([2, "10.0", 99, None]).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """

    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.knots or not all(math.isfinite(k) for k in self.knots) or list(self.knots) != sorted({*self.knots}):
            raise ValueError(f"Numbers: expected ascending finite knots, got {self.knots!r:.200}")

    @classmethod
    def of(cls, cells: Iterable[Any]) -> Self:
        """From the numbers that items have: at most ``KNOTS`` of their quantiles.

        Raises:
            ValueError: if there is none, or one is not finite.
        """
        numbers = [number for cell in cells if not math.isnan(number := cls.number(cell))]
        if not numbers:
            raise ValueError("no item has a number; expected some")
        return cls(tuple(np.unique(np.quantile(numbers, np.linspace(0, 1, KNOTS))).tolist()))

    @property
    def dim(self) -> int:
        """F, how many columns."""
        return len(self.knots) + 1

    @staticmethod
    def number(cell: Any) -> float:
        """The number in a cell; NaN where there is none.

        Raises:
            ValueError: if the cell holds something else.
        """
        cell = bare(cell)
        if _missing(cell):
            return math.nan
        try:
            number = float(cell)
        except (TypeError, ValueError):
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"expected a finite number, got {cell!r:.80}")
        return number

    def text(self, cell: Any) -> str:
        """A cell as text, whole numbers as such."""
        number = self.number(cell)
        return "" if math.isnan(number) else str(int(number) if number.is_integer() else number)

    def rows(self, cells: Sequence[Any]) -> Tensor:
        """(n, F) of n cells, each row of sum 1.

        Raises:
            ValueError: as :meth:`number`.
        """
        given = np.array([self.number(cell) for cell in cells], dtype=np.float64)
        out, missing, knots = np.zeros((len(given), self.dim)), np.isnan(given), np.array(self.knots)
        out[missing, -1] = 1
        number = np.clip(given, knots[0], knots[-1])
        places = np.arange(len(knots), dtype=np.float64)
        position = np.interp(number, knots, places)
        out[:, :-1] = np.where(missing[:, None], 0, np.clip(1 - abs(position[:, None] - places), 0, None))
        return torch.from_numpy(out).float()

    def settings(self) -> dict[str, Any]:
        """What makes it, as plain JSON."""
        return {"knots": list(self.knots)}


Encoding = Categories | Numbers


def encoding_of(said: Mapping[str, Any]) -> Encoding:
    """The encoding that ``settings()`` told of.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> encoding_of({"knots": [0.0, 1.0]})
        Numbers(knots=(0.0, 1.0))
    """
    if not isinstance(said, Mapping) or set(said) not in ({"knots"}, {"values", "separator"}):
        raise ValueError(f"expected the settings of an encoding, got {said!r:.200}")
    if "knots" not in said:
        if not isinstance(said["values"], list):
            raise ValueError(f"expected a list of values, got {said['values']!r:.200}")
        return Categories(tuple(said["values"]), said["separator"])
    if not isinstance(said["knots"], list) or not all(type(knot) in (int, float) for knot in said["knots"]):
        raise ValueError(f"expected a list of numbers as knots, got {said['knots']!r:.200}")
    return Numbers(tuple(map(float, said["knots"])))


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (is_single(cell) and cell != cell)


def _text(value: Any) -> str:
    value = bare(value)
    return str(value).lower() if isinstance(value, bool) else str(value).strip()
