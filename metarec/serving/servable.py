"""What serving needs of a model, and a wrapper that gives it to any method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from metarec.data.dataset import Catalog, Dataset
from metarec.functional.histories import check_exclude_seen, leaves_out_seen
from metarec.nn.record import longest_history, record_of
from metarec.types import Examples, Method, Scorer


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
    """A method that knows its items: :class:`~metarec.MML`, one of your own, or any other as :class:`Served`."""

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


def check_servable(model: object) -> None:
    """Refuse what does not say which items it scores.

    Raises:
        TypeError: if the model lacks what a :class:`Servable` has; says how to give it that.
    """
    lacking = [name for name in ("adapt", "catalog", "warm", "config") if not hasattr(model, name)]
    if lacking:
        name = type(model).__name__
        got = f"expected an MML or a method as Served, got {name}, which has no {' or '.join(lacking)}"
        way = "give a method" if "adapt" in lacking else f"wrap it: Recommender(Served({name}(...), upstream))"
        raise TypeError(f"Recommender: {got}; {way}")


@dataclass(frozen=True)
class _Read:
    max_length: int
    negatives: int


class Served(nn.Module):
    """Any method with the items that it was fitted on, for a :class:`~metarec.Recommender`.

    A user then keeps their scores of all items: 4 bytes for each. Counts that are live count everything that they were
    given.

    Args:
        method: fitted or trained, for example a blend.
        upstream: what it was fitted on.
        max_length: longest history; of longer ones the last clicks count. By default as long as the method reads.
        negatives: per example that the method adapts to.

    Example:
        >>> from metarec import Recommender
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> [item.id for item in Recommender(Served(EASE(up), up)).adapt(["item3", "item14"]).recommend(k=3)]
        ['item35', 'item15', 'item25']
    """

    def __init__(self, method: Method, upstream: Dataset, *, max_length: int | None = None, negatives: int = 1) -> None:
        super().__init__()
        self.method = method
        self.catalog, self.warm = upstream.catalog, upstream.warm
        self.config = _Read(longest_history(method) if max_length is None else max_length, negatives)
        self.repeat_share = upstream.known_repeat_share

    @property
    def information(self) -> str:
        """The method's."""
        return record_of(self.method).information

    @property
    def fitted_until(self) -> float | None:
        """The method's."""
        return record_of(self.method).fitted_until

    def adapt(self, support: Examples) -> Scorer:
        """As the method does."""
        return self.method.adapt(support)


def leaves_out(model: Servable, exclude_seen: bool | None) -> bool:
    """Whether lists leave out what the user has clicked: as asked, or by the model's ``repeat_share``.

    Raises:
        ValueError: if it is neither asked nor left to the rule.
    """
    check_exclude_seen("recommend", exclude_seen)
    return leaves_out_seen(getattr(model, "repeat_share", None)) if exclude_seen is None else exclude_seen


def warn_untrained(model: Servable) -> None:
    """Warn of a model whose lists mean nothing, or less than they should."""
    record_of(model).warn(type(model).__name__, stacklevel=4)
