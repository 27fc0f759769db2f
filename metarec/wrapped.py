"""Methods of one's own as models."""

from __future__ import annotations

import threading
import warnings
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from metarec.data.dataset import Catalog, Dataset
from metarec.model import Model
from metarec.modes import evaluating
from metarec.nn.empty_user import empty_user, one_click_each
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import Examples, Method

_ONE_AT_A_TIME = threading.RLock()  # what a method of one's own does inside is not known


class Wrapped(Model, nn.Module):
    """Any method with the items that it scores, as a model: its scores of all items are what a user's state keeps.

    Args:
        method: has ``adapt(support)``, whose result scores a query; an ``nn.Module`` or not.
        data: what it was fitted on, unless the method has a ``catalog`` and ``warm`` of its own.

    Raises:
        TypeError: if it has no ``adapt``, or nothing says which items it scores.
    """

    def __init__(self, method: Method, data: Dataset | None = None) -> None:
        if not hasattr(method, "adapt"):
            raise TypeError(f"expected a model, got {type(method).__name__}, which has no adapt(support)")
        super().__init__()
        self.method = method
        self._mask: Tensor | None = None
        told = ("catalog", "warm", "repeat_share", "config", "max_length", "negatives", "information", "fitted_until")
        vars(self).update({name: getattr(method, name) for name in told if getattr(method, name, None) is not None})
        if data is not None:
            self.attach(data)

    def item_mask(self) -> Tensor:
        """(I,) bool, what the method says when it is asked; of a user with one click, if nobody has asked yet.

        Raises:
            TypeError: if nobody has asked, and nothing says which items there are.
        """
        if self._mask is None:
            if self.warm is None:
                raise TypeError(f"{type(self.method).__name__} does not say which items it scores; attach(upstream)")
            self.encode(*one_click_each(np.flatnonzero(self.warm)[:1], self.negatives))
        return cast(Tensor, self._mask)

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Adapt to B users and score the catalogue, in one thread at a time.

        Raises:
            ValueError: if weights are to be kept.
        """
        if keep_weights or start is not None:
            raise ValueError(f"keep_weights: {type(self.method).__name__} has no weights to keep")
        with _ONE_AT_A_TIME, evaluating(self.method), torch.no_grad():
            scored = self.method.adapt(support)(query)
        self._mask, self.fitted = scored.item_mask, scored.fitted
        return UserState({"active": scored.has_known_history.flatten(), "scores": scored.scores.flatten(0, 1)})

    def add_items(self, added: Catalog) -> Self:
        """Never: only the method knows how.

        Raises:
            TypeError: always; names the method.
        """
        raise TypeError(f"add_items: {type(self.method).__name__} takes in no items; fit it anew on all items")

    def encode_empty(self) -> UserState:
        """The scores of a user without clicks: the mean after one likely click, likely by what the method expects.

        Weighting by it matters: the plain mean over all items ranks what people click first at half the recall of
        popularity.
        """
        return empty_user(self.encode, self._chances, np.asarray(self.warm), self.negatives)

    def _chances(self, state: UserState) -> Tensor:
        return state.tensors["scores"].softmax(-1).mean(0)

    def scores(self, state: UserState) -> Scores:
        """The scores as they were given."""
        return DenseScores(state.tensors["scores"], self.item_mask()[: self.fitted])


def as_model(method: Method, data: Dataset | None = None) -> Model:
    """A model as it is; any other method as a model, so that it can be served and be part of an ensemble.

    Args:
        method: has ``adapt(support)``, whose result scores a query.
        data: what it was fitted on, where it does not say so itself: gives the items that it scores.

    Raises:
        TypeError: if it has no ``adapt``.

    Example:
        >>> class ByCode:
        ...     def adapt(self, support):
        ...         return lambda query: ...
        >>> from metarec.datasets import planted
        >>> as_model(ByCode(), planted(users=60, items=40)).catalog.items
        Vocabulary(40 item ids)
    """
    if not isinstance(method, Model):
        return Wrapped(method, data)
    return method.attach(data) if data is not None and method.catalog is None else method


class Served(Wrapped):
    """The old name of :func:`as_model` for a method without items of its own.

    Args:
        method: fitted or trained.
        upstream: what it was fitted on.
        max_length: longest history; by default as long as the method reads.
        negatives: per example that the method adapts to.

    Example:
        >>> import warnings
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import Popularity
        >>> data = planted(users=60, items=40)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     served = Served(Popularity(data), data)
        >>> served.catalog.items
        Vocabulary(40 item ids)
    """

    def __init__(self, method: Method, upstream: Dataset, *, max_length: int | None = None, negatives: int = 1) -> None:
        warnings.warn(
            "metarec.Served is going in the next release: a model needs no wrapper any more, and as_model(method, "
            "upstream) wraps a method of your own",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(method, upstream)
        self.negatives = negatives
        if max_length is not None:
            self.max_length = max_length
