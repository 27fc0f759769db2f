"""Results of functions of large tensors, which several parts of a model ask for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


class Remembered(Generic[T]):
    """The last result of a function for each first tensor that lives, given again for the very same tensors.

    Example:
        >>> import torch
        >>> lengths, table = Remembered(), torch.ones(2, 3)
        >>> lengths.of([table], "sum", lambda: float(table.sum())), lengths.of([table], "sum", lambda: 0.0)
        (6.0, 6.0)
    """

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()
        self._lock = threading.RLock()

    def of(self, tensors: Sequence[Tensor], told: object, make: Callable[[], T]) -> T:
        """What ``make()`` gives, or gave for these tensors and what else it was told.

        Args:
            tensors: one or more, which nobody changes in place.
            told: all else that the result depends on.
            make: called where that was not asked last; its result must not hold the first tensor.
        """
        first, *others = tensors
        with self._lock:
            known = self._kept.get(first)
            if known is not None and known[0] == told and list(map(_alive, known[1])) == list(map(id, others)):
                found: T = known[2]
                return found
            made = make()
            self._kept[first] = told, [weakref.ref(each) for each in others], made
        return made


def _alive(other: weakref.ref[Tensor]) -> int:
    return id(other())
