"""What methods said of clicks that really came: what the weights of a blend are fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

NEVER = -1e9  # the log of no item at all
COLUMNS = ("user", "target", "z", "unknown", "context", "stands_for")  # of what was observed of each click


@dataclass(frozen=True)
class Observed:
    """What each method says of n clicks that really came, and of C rivals of each.

    They are all items; of a catalogue larger than ``RIVALS``, each method's best and some of the others, drawn. Were
    all drawn, most of the few items that everybody wants just now would be missing: the rivals at the top of the list.

    Attributes:
        names: of the S methods.
        user: (n,) codes.
        target: (n,) columns of the items that were clicked.
        z: (n, S, C) standardised scores.
        unknown: (n, S, C) bool, where a method does not know an item.
        context: (n, 3), see :meth:`Blend.context <metarec.recipes.Blend.context>`.
        stands_for: (n, C) log of how many items a rival stands for; ``NEVER`` for what is no rival: padding, and what
            the user has clicked already, but for the target.
        until: time of the last of the clicks; inf if not known.
    """

    names: tuple[str, ...]
    user: Tensor
    target: Tensor
    z: Tensor
    unknown: Tensor
    context: Tensor
    stands_for: Tensor
    until: float = field(default=math.inf, kw_only=True)

    def of(self, names: Iterable[str]) -> Observed:
        """Some of the methods only.

        Raises:
            ValueError: if one of them was not asked.
        """
        names = tuple(names)
        if strange := [name for name in names if name not in self.names]:
            raise ValueError(f"Blend: nothing was observed of {strange}, only of {list(self.names)}")
        if names == self.names:
            return self
        index = [self.names.index(name) for name in names]
        return replace(self, names=names, z=self.z[:, index], unknown=self.unknown[:, index])

    def on(self, rows: Tensor | slice) -> Observed:
        """Some of the clicks only; ``rows`` is an (n,) bool mask or a slice."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def split(self, size: int) -> Iterator[Observed]:
        """So many clicks at a time."""
        for start in range(0, len(self.z), size):
            yield self.on(slice(start, start + size))
