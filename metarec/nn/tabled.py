"""The contract of a model for learners: states and item vectors kept in tables, where scores are their products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.functional.fusion import check_scores
from metarec.model import Model
from metarec.nn.empty_user import chances_of, empty_user
from metarec.nn.frozen import check_vectors, evaluated
from metarec.nn.item_tables import ItemTables
from metarec.nn.linear_scores import LinearScores
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import Examples
from metarec.versions import kept


def is_linear(learner: object) -> bool:
    """Whether the very class of a learner says that its scores are products of states and item vectors, ``linear``.

    And the object has no function of its own instead of one of the class.

    Example:
        >>> is_linear(object())
        False
    """
    return bool(vars(type(learner)).get("linear")) and not has_own(learner)


def has_own(module: object) -> bool:
    """Whether an object has a function of its own instead of one of its class."""
    kind = type(module)
    return any(hasattr(kind, name) and callable(value) for name, value in vars(module).items())


class TabledModel(Model):
    """A base for models that score by products of states with item vectors, or, of a kind unknown, all items at once.

    Subclasses say by :meth:`bank` what their states and tables are; None where scores are no such products.
    """

    def bank(self) -> Any:
        """Frozen, with ``tables`` and ``encode(support, query, start=, keep_weights=)``; None if there is no such."""
        raise NotImplementedError

    def known_items(self) -> Tensor:
        """(I,) bool, items whose vectors mean something."""
        raise NotImplementedError

    def item_mask(self) -> Tensor:
        """(I,) bool, the items that it has something to say about."""
        return self.known_items()

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """Adapt to B users and encode where each of their Q queries stands, N = B * Q rows.

        Args:
            support: what each user has clicked.
            query: what is asked for.
            start: states whose kept weights the inner steps start from.
            keep_weights: keep each user's adapted weights in the state.

        Returns:
            ``state`` (N, M, D) and ``active`` (N, M); where item rows adapt, ``rows`` and ``corrections`` (N, M, U);
            where weights are kept, ``weights`` (N, M, P). Of a learner of a kind unknown, ``scores`` (N, I) and
            ``active`` (N,).

        Raises:
            ValueError: if weights are to be kept and there are none of the user's own.
        """
        bank = self.bank()
        if bank is not None:
            out: UserState = bank.encode(support, query, start=start, keep_weights=keep_weights)
            return out
        if keep_weights or start is not None:
            raise ValueError(f"keep_weights: {type(self).__name__} keeps no weights of a learner of this kind")
        return self._scored(support, query)

    @torch.no_grad()
    def _scored(self, support: Examples, query: Examples) -> UserState:
        device = self.known_items().device
        scored = evaluated(self).adapt(support.to(device))(query.to(device))  # type: ignore[type-var]
        check_scores(scored, type(self).__name__)
        return UserState({"active": scored.active.flatten(), "scores": scored.scores.flatten(0, 1)})

    def encode_empty(self) -> UserState:
        """A user without history: the average state after one click on a likely item, N = 1."""
        return kept(self, "empty", lambda: empty_user(self.encode, self.chances, self._clicked(), self.negatives))

    def _clicked(self) -> NDArray[Any]:
        """(I,) bool, items that somebody may have clicked."""
        if self.warm is not None:
            return self.warm
        known: NDArray[Any] = self.known_items().cpu().numpy()
        return known & (np.arange(len(known)) > 0)

    def chances(self, state: UserState) -> Tensor:
        """How likely each item is clicked next, (I,), on average over N users."""
        bank = self.bank()
        if bank is not None:
            return chances_of(bank.tables, state)
        return state.tensors["scores"].masked_fill(~self.known_items(), -torch.inf).softmax(-1).mean(0)

    def scores(self, state: UserState) -> Scores:
        """The learner's own scores of the catalogue, for N users."""
        bank = self.bank()
        if bank is not None:
            return LinearScores.raw(bank.tables, state)
        return DenseScores(state.tensors["scores"], self.known_items()[: self.fitted])


class FrozenLearner:
    """A learner frozen: it treats every user alike.

    Attributes:
        learner: a copy of its own.
        tables: the vectors of its items.
    """

    def __init__(self, learner: Any) -> None:
        self.learner = learner.frozen()
        name, items = type(learner).__name__, self.learner.items
        ids = None if learner.catalog is None else learner.catalog.items.ids
        check_vectors(name, items.table(), items.known, ids)
        self.tables = ItemTables.of([items.table()], [items.known], [name], learner.fitted)

    @torch.no_grad()
    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """The states after each query's history, whatever the support.

        Raises:
            ValueError: if weights are to be kept.
        """
        if keep_weights or start is not None:
            raise ValueError(
                f"keep_weights: {type(self.learner).__name__} has no weights of a user's own; adapt by a MetaLearner"
            )
        state, active = self.learner.encode_queries(query.to(self.tables.rows.device))
        return UserState({"active": active.flatten().unsqueeze(1), "state": state.flatten(0, 1).unsqueeze(1)})


class LearnerModel(TabledModel):
    """The contract for a learner by itself: weights are the same for all users."""

    items: Any

    def bank(self) -> FrozenLearner | None:
        """The learner frozen, until one of its numbers changes."""
        return kept(self, "bank", lambda: FrozenLearner(self)) if is_linear(self) else None

    def known_items(self) -> Tensor:
        """(I,) bool, items whose vectors mean something."""
        known: Tensor = self.items.known
        return known
