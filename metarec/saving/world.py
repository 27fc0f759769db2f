"""State that the models of one file share: the catalogue, its standardised features, and tied weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.functional.scaling import FeatureScale
from metarec.recipes.features import joined, scales_of, standardised
from metarec.types import Modality

T = TypeVar("T")
Scales = Mapping[str, FeatureScale]

COPIES = 32  # of the catalogue's features in one file: each takes as much memory as the features themselves
PARTS = 4096  # of all models of one file
HALF = (torch.float16, torch.bfloat16)
_QUIET = Lock()  # filters of warnings are the process's, not a thread's


@dataclass(eq=False)
class World:
    """The catalogue of a file, and what several models of it share in memory.

    Attributes:
        catalog: the items.
        warm: (I,) bool, items seen upstream.
    """

    catalog: Catalog
    warm: NDArray[Any]
    _made: dict[Any, Any] = field(default_factory=dict)
    _copies: int = 0
    _parts: int = 0

    def features(self, names: Sequence[str], scales: Scales | None) -> Modality:
        """Features of the catalogue, standardised if there are scales; of several modalities, joined.

        Raises:
            ValueError: if the catalogue lacks a modality, or there are too many different ones.
        """
        if len(names) > 1:
            key = (tuple(names), None if scales is None else tuple(scales[name].key for name in names))
            return self._once(key, lambda: self._copied(joined([self.features([name], scales) for name in names])))
        name = names[0]
        if scales is None:
            return self.catalog[name]
        one = {name: scales[name]}
        return self._once((name, one[name].key), lambda: self._copied(*standardised(self.catalog, one)))

    def _copied(self, made: Modality) -> Modality:
        self.copy()
        return replace(made)  # checks that the numbers are finite

    def copy(self) -> None:
        """Note that the features are copied.

        Raises:
            ValueError: if they were too often.
        """
        self._copies += 1
        if self._copies > COPIES:
            raise ValueError(f"the features are read in more than {COPIES} ways")

    def part(self) -> None:
        """Note that a part is about to be made.

        Raises:
            ValueError: if there are too many.
        """
        self._parts += 1
        if self._parts > PARTS:
            raise ValueError(f"there are more than {PARTS} parts")

    def scales(self, fitted: int) -> Scales:
        """The scale of every modality that has one, from the first so many rows."""
        return self._once(("scales", fitted), lambda: self._scales(fitted))

    def _scales(self, fitted: int) -> Scales:
        out: dict[str, FeatureScale] = {}
        for name in self.catalog.modalities:
            try:
                out |= quietly(lambda name=name: scales_of(self.catalog, [name], fitted))  # type: ignore[misc]
            except ValueError:  # such features were not standardised
                continue
        return out

    def parameter(self, tensor: Tensor) -> nn.Parameter:
        """A tensor of a file as a weight, in single precision where it was in half; one weight for each tensor."""
        made = self._once(id(tensor), lambda: (tensor, nn.Parameter(single(tensor))))  # which keeps the id taken
        weight: nn.Parameter = made[1]
        return weight

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        out: T = self._made[key]
        return out


_current: ContextVar[World | None] = ContextVar("world", default=None)


@contextmanager
def world_of(catalog: Catalog, warm: NDArray[Any]) -> Iterator[World]:
    """The models that are said or built inside are those of one file."""
    world = World(catalog, warm)
    token = _current.set(world)
    try:
        yield world
    finally:
        _current.reset(token)


def current(catalog: Catalog | None, warm: NDArray[Any] | None) -> World:
    """That of the file, or one for this catalogue alone.

    Raises:
        ValueError: if there is neither.
    """
    found = _current.get()
    if found is not None:
        return found
    if catalog is None or warm is None:
        raise ValueError("nothing says which items it scores; call attach(upstream) before")
    return World(catalog, warm)


def single(tensor: Tensor) -> Tensor:
    """Single precision where it was half."""
    return tensor.float() if tensor.dtype in HALF else tensor


def quietly(make: Callable[[], T]) -> T:
    """A call without warnings: what there is to say of the features was said when the model was made."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()
