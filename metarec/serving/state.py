"""What a recommender serves from at one moment, as one value that later changes leave alone.

Any number of threads read the state that is current, without a lock. What changes the catalogue, or finds that the
weights have changed, makes a new state under a lock and puts it in the place of the old one; an answer that has begun
goes on with the state that it began with.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.data.support import SupportMaker, sent
from metarec.model import Model, Snapshot
from metarec.modes import evaluating
from metarec.nn.kinds import reads_kinds
from metarec.nn.record import longest_history, negatives_of
from metarec.recipes.features import check_scale
from metarec.scoring import Scores, UserState
from metarec.served import remember
from metarec.serving.exposure import OffsetScores, score_offset
from metarec.types import Examples
from metarec.versions import Watched, tensors_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class State:
    """A model with what serving keeps of it.

    Attributes:
        model: with the items that were added.
        snapshot: what it has computed from its numbers; users are encoded and items scored by that.
        catalog: its items, with those that were removed.
        support: makes the examples that users are adapted to.
        known: (I,) bool, items that can be ranked.
        version: how often the weights were found changed; users of another version are not served.
        weights: the parameters of the model, each once.
        others: all other tensors of the model.
        shift: what is added to the scores of items that training has not seen.
    """

    model: Model
    snapshot: Snapshot
    catalog: Catalog
    support: SupportMaker
    known: Tensor
    version: int
    weights: Watched
    others: Watched
    shift: Tensor | None = None

    @cached_property
    def reads_kinds(self) -> bool:
        """Whether the model reads events of other kinds than clicks."""
        return reads_kinds(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.known.device

    def is_current(self) -> bool:
        """Whether all numbers of the model are still those that the snapshot was made of."""
        return self.others.is_same() and self.weights.is_same()

    def encode(
        self,
        clicks: Clicks,
        at: NDArray[np.float64] | None = None,
        gap: NDArray[np.float64] | None = None,
        *,
        profile: Tensor | None = None,
        start: UserState | None = None,
        keep_weights: bool = False,
    ) -> UserState:
        """User states of B users with a click each or more; see :class:`~metarec.serving.adapting.EncodeRequest`."""
        support, query = self.support(clicks)
        clock = {n: torch.from_numpy(v[:, None]) for n, v in (("time", at), ("gap", gap)) if v is not None}
        query = replace(query, **clock, profile=profile)
        return self._encoded(support, query, start=start, keep_weights=keep_weights)

    def _encoded(self, support: Examples, query: Examples, **how: Any) -> UserState:
        with evaluating(self.snapshot), torch.no_grad():
            return self.snapshot.encode(sent(support, self.device), sent(query, self.device), **how)

    def encode_empty(self, *, keep_weights: bool = False) -> UserState:
        """A user without clicks, N = 1; whoever keeps weights starts from the shared ones."""
        with evaluating(self.snapshot), torch.no_grad():
            found = self.snapshot.encode_empty()
            if not keep_weights:
                return found
        some = np.flatnonzero(self.support.is_warm)[:1]
        one = self.encode(Clicks(some, np.array([0, 1])), keep_weights=True)  # nothing to adapt to: no step is taken
        return UserState({**found.tensors, **one.named("weights")})

    def scores(self, users: UserState) -> Scores:
        """What ranks N users."""
        with evaluating(self.snapshot), torch.no_grad():
            found = self.snapshot.scores(users)
        return found if self.shift is None else OffsetScores(found, self.shift)


class States:
    """The current state of one recommender.

    Args:
        model: what it was given.
        new_share: see :class:`~metarec.Recommender`.
        version: of the first state.
        hidden: ids of the items that were removed.
    """

    def __init__(
        self, model: Model, new_share: float | None, version: int = 0, hidden: frozenset[str] | None = None
    ) -> None:
        self.new_share, self.version = new_share, version
        self._model, self._given = model, weakref.ref(model)
        self._hidden = self._items(model).hidden if hidden is None else hidden
        self._state: State | None = None
        self._lock = threading.RLock()

    @staticmethod
    def _items(model: Model) -> Catalog:
        if model.catalog is None or model.warm is None:
            raise TypeError(f"Recommender: {type(model).__name__} does not say which items it scores; attach(upstream)")
        return model.catalog

    @property
    def model(self) -> Model:
        """The model as it is now, its catalogue without the items that were removed."""
        state = self._state
        model, hidden = (self._model, self._hidden) if state is None else (state.model, state.catalog.hidden)
        if self._items(model).hidden == hidden:
            return model
        out = copy.copy(model)
        out.catalog = replace(self._items(model), hidden=hidden)
        return out

    def current(self) -> State:
        """The state that belongs to the model as it is now."""
        state = self._state
        if state is not None and state.is_current():
            return state
        with self._lock:
            state = self._state
            if state is None:
                return self._put(self._made(self._model, self.version, self._hidden))
            if not state.weights.is_same():
                return self._put(self._made(state.model, state.version + 1, state.catalog.hidden))
            if not state.others.is_same():
                others = _others(state.model)
                return self._put(replace(state, others=others, snapshot=state.model.snapshot()))
            return state

    def add_items(self, added: Callable[[Model, Catalog], Catalog]) -> None:
        """Take new items in.

        Args:
            added: makes the new items, checked against the model's catalogue.

        Raises:
            TypeError, ValueError: as the model's ``add_items``, or if the model could not rank one of the items.
        """
        with self._lock:
            state = self.current()
            items, scales = added(state.model, state.catalog), state.model.scales or {}
            if not len(items.items):
                return
            check_scale(items, scales)
            grown = state.model.add_items(items)
            own = grown.item_mask()[-len(items.items) :]
            if not bool(own.all()):
                lacking = items.items.ids[int((~own).nonzero()[0])]
                way = (
                    f"give it one of {sorted(scales)}"
                    if scales
                    else "this model knows ids alone, and takes in no items"
                )
                raise ValueError(
                    f"add_items: item {lacking!r} has no vector in any modality, so nothing could rank it; {way}"
                )
            self._put(self._made(grown, state.version, state.catalog.hidden))

    def change(self, work: Callable[[State], T]) -> T:
        """Let the model move on, one change at a time."""
        with self._lock:
            return work(self.current())

    def hide(self, ids: Sequence[str], change: Callable[[frozenset[str], frozenset[str]], frozenset[str]]) -> None:
        """Change which items are removed.

        Args:
            ids: some items.
            change: from the items that are removed and those of ``ids`` to the items that will be.

        Raises:
            ValueError: if an id is not known.
        """
        with self._lock:
            state = self.current()
            items = state.catalog.items
            hidden = change(state.catalog.hidden, frozenset(items.decode(items.encode(ids).tolist())))
            self._put(replace(state, catalog=replace(state.catalog, hidden=hidden)))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy begins with: the model; it computes the rest for itself."""
        version = self.version if self._state is None else self.current().version
        hidden = self._hidden if self._state is None else self._state.catalog.hidden
        return {"model": copy.copy(self.model), "new_share": self.new_share, "version": version, "hidden": hidden}

    def __setstate__(self, given: dict[str, Any]) -> None:
        """A copy, by :mod:`copy` or :mod:`pickle`."""
        self.__init__(**given)  # type: ignore[misc]

    def _put(self, state: State) -> State:
        self._state, given = state, self._given()
        if given is not None:
            remember(given, state)
        return state

    def _made(self, model: Model, version: int, hidden: frozenset[str]) -> State:
        weights = Watched.of(tensors_of(model, buffers=False))  # before they are read: a change meanwhile is noticed
        others = _others(model)
        own = self._items(model)
        catalog = own if own.hidden == hidden else replace(own, hidden=hidden)
        support = SupportMaker(np.asarray(model.warm), negatives_of(model), longest_history(model))
        known = model.item_mask().clone()
        state = State(model, model.snapshot(), catalog, support, known, version, weights, others)
        if self.new_share is not None:
            new = known & ~torch.from_numpy(np.asarray(model.warm)).to(known.device)
            shift = score_offset(state._encoded, state.scores, known, support.is_warm, new, self.new_share)
            return replace(state, shift=new * shift)
        return state


def _others(model: Model) -> Watched:
    """All tensors of a model but its weights."""
    return Watched.of(tensor for tensor in tensors_of(model) if not isinstance(tensor, nn.Parameter))
