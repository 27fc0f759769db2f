"""Sums of the weights of pairs of items, to which pairs are added in time proportional to those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from metarec.data.dataset import Ints
from metarec.recipes.click_log import Floats

CODE = 1 << 32  # above any item code: a pair is one number, the first code * CODE + the second
GROWTH = 4  # a part is more than so many times as long as the next, or it is merged with it


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums of weights by pair: sorted parts, each much longer than the next, that are added up when they are read.

    New pairs make a short part, which takes in those that are not much longer: each pair is merged a few times only.

    Attributes:
        parts: (keys ascending, weights) each.
        total: (I,) sums over the second item.

    Example:
        >>> sums = PairSums.none(4).plus(np.array([1, 1, 2]), np.array([3, 3, 1]), np.ones(3))
        >>> sums.total.tolist(), [weight.tolist() for key, weight in sums.parts]
        ([0.0, 2.0, 1.0, 0.0], [[2.0, 1.0]])
        >>> sums.bounds(np.array([1, 2, 0]))[0][1].tolist()
        [1, 1, 0]
    """

    parts: tuple[tuple[Ints, Floats], ...]
    total: Floats

    @classmethod
    def none(cls, items: int) -> Self:
        """No pairs, of a catalogue with so many rows."""
        return cls((), np.zeros(items))

    def plus(self, first: Ints, second: Ints, weight: Floats) -> Self:
        """The sums with more pairs; weights below 0 take pairs out again."""
        if not len(first):
            return self
        total = self.total + np.bincount(first, weight, len(self.total))
        part, parts = summed(first * CODE + second, weight), list(self.parts)
        while parts and len(parts[-1][0]) <= GROWTH * len(part[0]):
            longer = parts.pop()
            part = summed(*(np.concatenate(columns) for columns in zip(longer, part, strict=True)))
        return type(self)((*parts, part), total)

    def padded(self, items: int) -> Self:
        """The same for a larger catalogue."""
        return replace(self, total=np.pad(self.total, (0, items - len(self.total))))

    def bounds(self, items: Ints) -> list[tuple[Ints, Ints]]:
        """Where the pairs of first items begin in each part and how many they are, shaped as the items."""
        edges = np.stack([items, items + 1]) * CODE
        ends = (np.searchsorted(key, edges) for key, _ in self.parts)
        return [(low, high - low) for low, high in ends]


def summed(key: Ints, weight: Floats) -> tuple[Ints, Floats]:
    """Keys ascending, each once, and the sums of their weights."""
    order = np.argsort(key, kind="stable")  # of parts, which are sorted already, this is a merge
    key, weight = key[order], weight[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return key[first], np.add.reduceat(weight, first)
