"""What serving needs of a model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Catalog
from metarec.types import Method


class Limits(Protocol):
    """What serving reads of a model's settings."""

    @property
    def max_length(self) -> int:
        """Longest history."""
        ...

    @property
    def negatives(self) -> int:
        """Negatives per support example."""
        ...


class Servable(Method, Protocol):
    """A method that knows its items: :class:`~metarec.MML`, or one of your own."""

    @property
    def catalog(self) -> Catalog:
        """The items and their external ids."""
        ...

    @property
    def warm(self) -> NDArray[np.bool_]:
        """(I,) items that may be drawn as negatives."""
        ...

    @property
    def config(self) -> Limits:
        """The settings that serving needs."""
        ...
