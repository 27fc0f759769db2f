"""Sums of the weights of pairs of items, to which pairs are added in time proportional to those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Ints
from metarec.recipes.click_log import Floats

CODE = 1 << 32  # above any item code: a pair is one number, the first code * CODE + the second
GROWTH = 4  # a part is more than so many times as long as the next, or it is merged with it


@dataclass(frozen=True, eq=False)
class PairPart:
    """Sums of some pairs, which never change.

    Attributes:
        key: (p,) ascending.
        weight: (p,) the sums.
    """

    key: Ints
    weight: Floats

    @cached_property
    def start(self) -> Ints | None:
        """Where the pairs of each first item begin, and the last end; None if there are more items than pairs."""
        last = int(self.key[-1]) // CODE if len(self.key) else 0
        return np.searchsorted(self.key, np.arange(last + 2) * CODE) if last < len(self.key) else None

    @cached_property
    def item(self) -> NDArray[np.int32]:
        """(p,) the second items."""
        return (self.key & (CODE - 1)).astype(np.int32)

    def bounds(self, items: Ints) -> tuple[Ints, Ints]:
        """Where the pairs of first items begin and how many they are, shaped as the items."""
        if (start := self.start) is None:
            low, high = np.searchsorted(self.key, np.stack([items, items + 1]) * CODE)
        else:
            low, high = start.take(items, mode="clip"), start.take(items + 1, mode="clip")  # none behind the last
        return low, high - low


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums of weights by pair: sorted parts, each much longer than the next, that are added up when they are read.

    New pairs make a short part, which takes in those that are not much longer: each pair is merged a few times only.

    Attributes:
        parts: of pairs that were added together.
        total: (I,) sums over the second item.

    Example:
        >>> sums = PairSums.none(4).plus(np.array([1, 1, 2]), np.array([3, 3, 1]), np.ones(3))
        >>> sums.total.tolist(), [part.weight.tolist() for part in sums.parts]
        ([0.0, 2.0, 1.0, 0.0], [[2.0, 1.0]])
        >>> sums.parts[0].bounds(np.array([1, 2, 0]))[1].tolist()
        [1, 1, 0]
    """

    parts: tuple[PairPart, ...]
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
        while parts and len(parts[-1].key) <= GROWTH * len(part.key):
            longer = parts.pop()
            part = summed(np.append(longer.key, part.key), np.append(longer.weight, part.weight))
        return type(self)((*parts, part), total)

    def padded(self, items: int) -> Self:
        """The same for a larger catalogue."""
        return replace(self, total=np.pad(self.total, (0, items - len(self.total))))


def summed(key: Ints, weight: Floats) -> PairPart:
    """Keys ascending, each once, and the sums of their weights."""
    order = np.argsort(key, kind="stable")  # of parts, which are sorted already, this is a merge
    key, weight = key[order], weight[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return PairPart(key[first], np.add.reduceat(weight, first))
