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
from typing import Any

import torch
from torch import nn

from metarec.data.dataset import Catalog
from metarec.recipes.growing import remember, with_items
from metarec.recipes.mml import MML
from metarec.serving.clicks import SupportMaker
from metarec.serving.exposure import shift_of
from metarec.serving.servable import Servable
from metarec.serving.snapshot import FusedSnapshot, Snapshot, snapshot_of


@dataclass(frozen=True, eq=False)
class State:
    """A model with what serving computes of it once.

    Attributes:
        model: with the items that were added or removed.
        snapshot: its tables.
        support: makes the examples that users are adapted to.
        version: how often the weights were found changed; users of another version are not served.
        parameters: of the model.
        seen: where the parameters' numbers were, and how often they had been changed.
    """

    model: Servable
    snapshot: Snapshot
    support: SupportMaker
    version: int
    parameters: tuple[nn.Parameter, ...]
    seen: list[tuple[int, int]]

    @property
    def catalog(self) -> Catalog:
        """The items."""
        return self.model.catalog

    def is_current(self) -> bool:
        """Whether the weights are still those of the snapshot."""
        return self.seen == _seen(self.parameters)


class States:
    """The current state of one recommender.

    Args:
        model: what it was given.
        new_share: see :class:`~metarec.Recommender`.
        version: of the first state.
    """

    def __init__(self, model: Servable, new_share: float | None, version: int = 0) -> None:
        self.new_share, self.version = new_share, version
        self._model = model
        self._given = weakref.ref(model) if isinstance(model, MML) else None
        self._state: State | None = None
        self._lock = threading.RLock()

    @property
    def model(self) -> Servable:
        """The model as it is now."""
        state = self._state
        return self._model if state is None else state.model

    def current(self) -> State:
        """The state that belongs to the model as it is now."""
        state = self._state
        if state is not None and state.is_current():
            return state
        with self._lock:
            state = self._state
            if state is None:
                support = SupportMaker(self._model.warm, self._model.config.negatives, self._model.config.max_length)
                return self._put(self._made(self._model, support, self.version))
            if not state.is_current():
                return self._put(self._made(state.model, state.support, state.version + 1))
            return state

    def grow(self, added: Callable[[Catalog], Catalog]) -> None:
        """Take new items in.

        Args:
            added: makes the new items, checked against the catalogue as it is.
        """
        with self._lock:
            state = self.current()
            items = added(state.catalog)
            if len(items.items) and isinstance(state.model, MML):
                model = with_items(state.model, items)
                self._put(self._made(model, state.support.grown(model.catalog.size), state.version))

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
            items, model = state.catalog.items, copy.copy(state.model)
            hidden = change(state.catalog.hidden, frozenset(items.decode(items.encode(ids).tolist())))
            vars(model)["catalog"] = replace(state.catalog, hidden=hidden)
            self._put(replace(state, model=model))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy begins with: the model; it computes the rest for itself."""
        version = self.version if self._state is None else self.current().version
        return {"model": self.model, "new_share": self.new_share, "version": version}

    def __setstate__(self, given: dict[str, Any]) -> None:
        """A copy, by :mod:`copy` or :mod:`pickle`."""
        self.__init__(**given)  # type: ignore[misc]

    def _put(self, state: State) -> State:
        self._state, self._model = state, state.model
        given = None if self._given is None else self._given()
        if given is not None and isinstance(state.model, MML):
            remember(given, state.model)
        return state

    def _made(self, model: Servable, support: SupportMaker, version: int) -> State:
        parameters = tuple(model.parameters()) if isinstance(model, nn.Module) else ()
        seen = _seen(parameters)  # before they are read: a change meanwhile makes the state out of date
        snapshot = snapshot_of(model)
        if self.new_share is not None and isinstance(snapshot, FusedSnapshot):
            new = snapshot.known & ~torch.from_numpy(model.warm).to(snapshot.device)
            shift = new * shift_of(snapshot, support, new, self.new_share)
            snapshot.tables = replace(snapshot.tables, shift=shift)
        return State(model, snapshot, support, version, parameters, seen)


def _seen(parameters: tuple[nn.Parameter, ...]) -> list[tuple[int, int]]:
    return [(p.data_ptr(), p._version) for p in parameters]
