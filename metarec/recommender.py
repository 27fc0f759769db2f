"""Serving: a new user's clicks in, a ranked list of external ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.dataset import Catalog
from metarec.data.sampler import support_of
from metarec.evaluation import evaluating
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


@dataclass(frozen=True, repr=False)
class Recommendation:
    """One entry of a ranked list.

    Attributes:
        id: the item's external id.
        score: comparable within one user's list, not between users.
    """

    id: str
    score: float

    def __repr__(self) -> str:
        return f"{self.id} ({self.score:.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class User:
    """A user that a model has adapted to. Keeps the scores, so that asking again costs nothing.

    Attributes:
        history: the external ids it was made from, in time order.
        scores: (I,) the score of every item code.
        known: (I,) bool, items that some modality knows; only these are recommended.
        catalog: the items.
    """

    history: tuple[str, ...]
    scores: Tensor
    known: Tensor
    catalog: Catalog

    def __repr__(self) -> str:
        return f"User({len(self.history)} clicks, the last on {self.history[-1]!r})"

    def recommend(self, k: int = 10, *, exclude_seen: bool = True) -> list[Recommendation]:
        """The k items with the highest scores, best first; equal scores in the order of the catalogue.

        Args:
            k: the length of the list.
            exclude_seen: leave out what the user has clicked.

        Raises:
            ValueError: if ``k`` is less than 1 or more than the items that can be recommended.
        """
        allowed = self.known.clone()
        allowed[0] = False
        if exclude_seen:
            allowed[torch.from_numpy(self.catalog.items.encode(self.history)).to(allowed.device)] = False
        codes = allowed.nonzero().squeeze(1)
        if not 1 <= k <= len(codes):
            unseen = " and that this user has not clicked" if exclude_seen else ""
            raise ValueError(
                f"recommend: k must be at least 1 and at most {len(codes)}, the number of items that the model "
                f"knows{unseen}, got {k}"
            )
        scores, order = self.scores[codes].sort(descending=True, stable=True)
        ids = self.catalog.items.decode(codes[order[:k]].tolist())
        return [Recommendation(name, score) for name, score in zip(ids, scores[:k].tolist(), strict=True)]


class Recommender:
    """Serves new users with a trained model: the training path with one user.

    Runs where the model is and in evaluation mode; the model is left in the mode it was in. The same clicks give the
    same list.

    Args:
        model: e.g. an :class:`~metarec.MML`, trained or loaded.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> me = Recommender(MML.build(up, MMLConfig(dim=8))).adapt(["item3", "item14", "item15"])
        >>> me
        User(3 clicks, the last on 'item15')
        >>> len(me.recommend(k=10)), me.recommend(k=37)[0] == me.recommend(k=1)[0]
        (10, True)
        >>> me.recommend(k=38)
        Traceback (most recent call last):
        ...
        ValueError: recommend: k must be at least 1 and at most 37, the number of items that the model knows and that
        this user has not clicked, got 38
    """

    def __init__(self, model: Servable) -> None:
        self.model = model

    def adapt(self, ids: Sequence[str]) -> User:
        """Adapt to one user. A user with a single click has nothing to adapt to and is served by the shared weights.

        Args:
            ids: external ids of what the user clicked, in time order; of a longer history than the model reads, the
                last clicks count.

        Raises:
            ValueError: if there is no click, an id is not known (naming it and the nearest known ones), no modality
                knows any of the items, or a score is not finite.
        """
        if isinstance(ids, str):
            raise ValueError(f"adapt: expected a sequence of item ids, got the string {ids!r}; write [{ids!r}]")
        history = tuple(ids)
        if not history:
            raise ValueError(
                "adapt: the history is empty; pass at least one item id that the user clicked, and show popular items "
                "to a user without any click"
            )
        catalog, limits = self.model.catalog, self.model.config
        support, query = support_of(
            [catalog.items.encode(history)],
            warm=self.model.warm,
            negatives=limits.negatives,
            max_length=limits.max_length,
        )
        with evaluating(self.model) as device, torch.no_grad():
            scored = self.model.adapt(support.to(device))(query.to(device))
        if not bool(scored.active.any()):
            raise ValueError(
                f"adapt: the model knows none of the items {list(history[:5])}: they were not seen upstream and have "
                "no features; show popular items, or give the items features"
            )
        scores = scored.scores[0, 0]
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"adapt: the scores after adapting to {list(history[:5])} are not finite; the steps diverge: train or "
                "adapt with a lower learning rate"
            )
        return User(history, scores, scored.known, catalog)
