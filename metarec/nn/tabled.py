"""The contract of a model for learners: states and item vectors kept in tables, where scores are their products."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.functional.fusion import check_scores
from metarec.model import Model, Snapshot
from metarec.nn.empty_user import chances_of, empty_user
from metarec.nn.frozen import check_vectors, evaluated
from metarec.nn.item_tables import ItemTables
from metarec.nn.linear_scores import LinearScores
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import Examples
from metarec.versions import hand_on, kept


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


class TableSnapshot:
    """The base of what is computed from learners' weights once: their item vectors, and how users are encoded.

    Attributes:
        tables: the vectors of their items.
        warm: (I,) bool, items that a user without history may have clicked.
        negatives: of support examples.
    """

    tables: ItemTables
    warm: NDArray[Any]
    negatives: int

    def encode(
        self, support: Examples, query: Examples, *, start: UserState | None = None, keep_weights: bool = False
    ) -> UserState:
        """See :meth:`TabledModel.encode`."""
        raise NotImplementedError

    def encode_empty(self) -> UserState:
        """A user without history, N = 1; see :func:`metarec.nn.empty_user.empty_user`."""
        return self._empty

    @cached_property
    def _empty(self) -> UserState:
        return empty_user(self.encode, self.chances, self.warm, self.negatives)

    def chances(self, state: UserState) -> Tensor:
        """How likely each item is clicked next, (I,), on average over N users and the learners."""
        return chances_of(self.tables, state)

    def scores(self, state: UserState) -> Scores:
        """The scores of one learner as they are."""
        return LinearScores.raw(self.tables, state)

    def user_weights(self, state: UserState) -> Tensor:
        """(N, 0): nothing is weighted."""
        return torch.zeros(len(state), 0)


def clicked(warm: NDArray[Any] | None, known: Tensor) -> NDArray[Any]:
    """(I,) bool, items that somebody may have clicked: those seen upstream; where nobody says, all that are known."""
    if warm is not None:
        return warm
    own: NDArray[Any] = known.cpu().numpy()
    return own & (np.arange(len(own)) > 0)


class TabledModel(Model):
    """A base for models that score by products of states with item vectors, or, of a kind unknown, all items at once.

    Subclasses say by ``_new_bank`` what their states and tables are; None where scores are no such products.
    """

    def bank(self) -> TableSnapshot | None:
        """Learners frozen, until one of their numbers changes; None if there is no such."""
        return kept(self, self._bank_name(), self._new_bank)

    def _bank_name(self) -> str:
        """Another one for all that the bank depends on besides the numbers."""
        return "bank"

    def _new_bank(self) -> TableSnapshot | None:
        raise NotImplementedError

    def keep_bank_of(self, before: Self) -> Self:
        """Take the bank of the model that items were added to, if it has one, with the new rows; returns itself."""
        hand_on(before, self, self._bank_name(), lambda bank: bank and self._longer_bank(bank))
        return self

    def _longer_bank(self, before: Any) -> TableSnapshot | None:
        """The bank, of one that lacks the last items; None if it has to be made anew."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """The bank; the model itself if it has none."""
        return self.bank() or self

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
            return bank.encode(support, query, start=start, keep_weights=keep_weights)
        if keep_weights or start is not None:
            raise ValueError(f"keep_weights: {type(self).__name__} keeps no weights of a learner of this kind")
        return self._scored(support, query)

    @torch.no_grad()
    def _scored(self, support: Examples, query: Examples) -> UserState:
        device = self.known_items().device
        scored = evaluated(self).adapt(support.to(device))(query.to(device))  # type: ignore[type-var]
        check_scores(scored, type(self).__name__)
        return UserState({"active": scored.has_known_history.flatten(), "scores": scored.scores.flatten(0, 1)})

    def encode_empty(self) -> UserState:
        """A user without history: the average state after one click on a likely item, N = 1."""
        bank = self.bank()
        return kept(self, "empty", self._empty) if bank is None else bank.encode_empty()

    def _empty(self) -> UserState:
        return empty_user(self.encode, self._chances, clicked(self.warm, self.known_items()), self.negatives)

    def _chances(self, state: UserState) -> Tensor:
        return state.tensors["scores"].masked_fill(~self.known_items(), -torch.inf).softmax(-1).mean(0)

    def scores(self, state: UserState) -> Scores:
        """The model's own scores of the catalogue, for N users."""
        bank = self.bank()
        if bank is not None:
            return bank.scores(state)
        return DenseScores(state.tensors["scores"], self.known_items()[: self.fitted])

    def user_weights(self, state: UserState) -> Tensor:
        """(N, M) how much each learner counts for each user; (N, 0) where nothing is weighted."""
        bank = self.bank()
        return super().user_weights(state) if bank is None else bank.user_weights(state)


class FrozenLearner(TableSnapshot):
    """A learner frozen: it treats every user alike.

    Attributes:
        learner: a copy of its own.
    """

    def __init__(self, learner: Any) -> None:
        self.learner = learner.frozen()
        name, items = type(learner).__name__, self.learner.items
        ids = None if learner.catalog is None else learner.catalog.items.ids
        check_vectors(name, items.table(), items.known, ids)
        self.tables = ItemTables.of([items.table()], [items.known], [name], learner.fitted)
        self.warm, self.negatives = clicked(learner.warm, items.known), learner.negatives

    def after(self, learner: Any) -> Self | None:
        """The same of a learner that items were added to; None where their vectors cannot be computed alone."""
        out = copy.copy(self)
        out.learner = learner.frozen_after(self.learner)
        if out.learner is None or learner.warm is None:
            return None
        items, before = out.learner.items, len(self.tables.rows)
        check_vectors(type(learner).__name__, items.table(), items.known, learner.catalog.items.ids, before)
        out.tables = self.tables.with_more([items.table()[before:]], [items.known[before:]])
        out.warm = learner.warm
        return out

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

    def _new_bank(self) -> FrozenLearner | None:
        return FrozenLearner(self) if is_linear(self) else None

    def _longer_bank(self, before: FrozenLearner) -> FrozenLearner | None:
        return before.after(self) if is_linear(self) else None

    def known_items(self) -> Tensor:
        """(I,) bool, items whose vectors mean something."""
        known: Tensor = self.items.known
        return known
