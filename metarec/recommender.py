"""Serving: a new user's clicks in, a ranked list of external ids out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.containers import is_single, plain
from metarec.data.dataset import Catalog
from metarec.io import read_model, write_model
from metarec.recipes.mml import MML
from metarec.serving.adapting import adapted, checked, further
from metarec.serving.additions import Vectors, new_items
from metarec.serving.clicks import Clicks, Spelled, SupportMaker
from metarec.serving.listing import Wanted, listed, whole
from metarec.serving.lists import Recommendation, Recommendations
from metarec.serving.servable import Servable, check_servable, leaves_out, warn_untrained
from metarec.serving.snapshot import Snapshot
from metarec.serving.state import State, States
from metarec.serving.storage import read_users, write_users
from metarec.serving.users import Ids, User, Users

__all__ = ["Recommendation", "Recommendations", "Recommender", "User", "Users"]


class Recommender:
    """Serves new users with a trained model, one or a hundred thousand, and takes in new items while it runs.

    What does not depend on the user is computed once, at the first call and again after the model's numbers or its
    catalogue have changed; after a part of it was exchanged or hooked, make a new one. Runs where the model is and in
    evaluation mode; the model is left as it was. The same clicks give the same list, whoever else is adapted to at the
    same time. Any number of threads may call it; each call sees one catalogue and one set of weights. Ids are strings,
    in any container that has an order (lists, arrays, columns of pandas, polars or Arrow, generators): by position,
    never by label.

    Args:
        model: e.g. an :class:`~metarec.MML`, trained or loaded; any other method as :class:`~metarec.Served`.
        new_share: of the places in lists of ten, what items that training has not seen get, on average over typical
            users: one number is added to all their scores. Choose it on upstream data, see
            ``benchmarks/new_items.py``. By default scores stay as the model gives them.

    Raises:
        TypeError: if the model does not say which items it scores; :class:`~metarec.Served` does.
        ValueError: if ``new_share`` is not between 0 and 1, or the model is not an MML.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import MML, MMLConfig
        >>> up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
        >>> recommender = Recommender(MML.build(up, MMLConfig(dim=8)))
        >>> me = recommender.adapt(["item3", "item14", "item15"])
        >>> me
        User(3 clicks, the last on 'item15')
        >>> len(me.recommend(k=10)), me.recommend(k=37)[0] == me.recommend(k=1)[0]
        (10, True)
        >>> many = recommender.adapt([["item3", "item14", "item15"], ["item7"]])
        >>> many, many.recommend(k=5), many[0].recommend(k=1) == me.recommend(k=1)
        (Users(2 users, 4 clicks), Recommendations(2 users, 5 items each), True)
    """

    def __init__(self, model: Servable, *, new_share: float | None = None) -> None:
        check_servable(model)
        if new_share is not None and not (0 < new_share < 1 and isinstance(model, MML)):
            raise ValueError(
                f"Recommender: new_share must be between 0 and 1, of an MML, got {new_share} of {type(model).__name__}"
            )
        warn_untrained(model)
        self.new_share = new_share
        self._states = States(model, new_share)

    @property
    def model(self) -> Servable:
        """The model, with the items that were added or removed."""
        return self._states.model

    @property
    def catalog(self) -> Catalog:
        """The items, with those that were added."""
        return self.model.catalog

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the learners that :attr:`User.weights` is about."""
        return self._states.current().snapshot.names

    @overload
    def adapt(self, history: Sequence[str], *, keep_weights: bool = False) -> User: ...  # type: ignore[overload-overlap]
    @overload
    def adapt(self, history: Sequence[Sequence[str]], *, keep_weights: bool = False) -> Users: ...
    def adapt(self, history: Sequence[str] | Sequence[Sequence[str]], *, keep_weights: bool = False) -> User | Users:
        """Adapt to one user's clicks, or to those of many users.

        A user with one click has nothing to adapt to and is served by the shared weights. One without any gets the
        unadapted ranking, that of the average state after one likely click. ``adapted`` says which.

        Many users are adapted to thousands at a time, in halves where a GPU's memory turns out too small; so are lists
        made. The log says so, and the result is the same.

        Args:
            history: external ids of what the user clicked, in time order, or one such sequence per user; of a longer
                history than the model reads, the last clicks count. ``[]`` is one user without clicks, ``[[]]`` the
                same as many.
            keep_weights: let the handle carry the adapted weights, about a megabyte a user instead of a kilobyte at
                the default sizes, so that :meth:`Users.update` goes on from them; see there.

        Raises:
            ValueError: if an id is not known (naming it and the nearest known ones), no modality knows any of a user's
                items, a score is not finite, or weights are to be kept of a model that adapts item rows too.
        """
        entries = plain(history, "adapt")
        one = all(map(is_single, entries))
        state = self._states.current()
        clicks = Spelled([entries] if one else entries, state.catalog.items)
        start = state.snapshot.start().expand(len(clicks.counts), -1, -1) if keep_weights else None
        users = self._adapted(state, clicks, start)
        return User(users) if one else users

    def stream(self, histories: Iterable[Sequence[str]], *, users: int = 4096) -> Iterator[Users]:
        """Adapt to any number of users in pieces, with memory for one piece.

        Args:
            histories: as for :meth:`adapt`, from anything that yields them.
            users: of one piece.

        Raises:
            ValueError: if ``users`` is no whole number of at least 1, or as for :meth:`adapt`.
        """
        users = whole(users, "stream: users")
        source = iter(histories if hasattr(histories, "__next__") else plain(histories, "stream"))
        while piece := list(islice(source, users)):
            state = self._states.current()
            yield self._adapted(state, Clicks.of(piece, state.catalog.items))

    def rank(
        self,
        users: Users,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Ids | None = None,
        deny: Ids | None = None,
        candidates: Sequence[Ids] | None = None,
        columns: int | None = None,
    ) -> Recommendations:
        """As :meth:`Users.recommend`, without its warning; ``columns`` of the catalogue are scored at once."""
        state = self._of(users)
        wanted = Wanted.of(k, leaves_out(state.model, exclude_seen), allow, deny, candidates)
        with torch.no_grad():
            scores = state.snapshot.scores(users.standing)
            return listed(wanted, scores, users.clicks, state.snapshot.known, state.catalog, columns)

    def weights_of(self, users: Users) -> NDArray[np.float32]:
        """As :attr:`Users.weights`."""
        snapshot = self._of(users).snapshot
        with torch.no_grad():
            return snapshot.weights(users.standing).float().cpu().numpy()

    def scores_of(self, users: Users) -> Tensor:
        """(B, I) every score, for a few users."""
        state = self._of(users)
        with torch.no_grad():
            return state.snapshot.scores(users.standing).approximate(0, state.catalog.size)

    def updated(self, users: Users, clicks: Sequence[Sequence[str]]) -> Users:
        """As :meth:`Users.update`."""
        state = self._of(users)
        clicks = plain(clicks, "update")
        if len(clicks) != len(users):
            raise ValueError(f"update: expected clicks for each of the {len(users)} users, got {len(clicks)} sequences")
        more = Clicks.of(clicks, state.catalog.items)
        if not more.counts.any():
            return users
        whole = users.clicks.extended(more)
        standing = further(state.snapshot, state.support, whole, more.counts, users.standing)
        return Users(self, whole, checked(standing, whole, state.catalog, state.snapshot.names), users.version)

    def add_items(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, Vectors] | None = None,
        *,
        attributes: Mapping[str, Sequence[str]] | None = None,
        **more: Vectors,
    ) -> None:
        """Take new items in: from now on they can be clicked and are recommended; nothing is trained.

        Codes and vectors of the other items stay as they are, and users adapted before stay valid: they can be
        recommended the new items at once.

        Args:
            ids: external ids, none of them known yet.
            vectors: feature vectors by modality, as they come (not standardised): (n, F) in the order of the ids, or
                by id, where items may be missing. Every item needs one in at least one modality.
            attributes: one string per id by column of the catalogue, e.g. ``{"title": [...]}``.
            more: vectors as keywords, e.g. ``text=...``.

        Raises:
            TypeError: if the model takes in no items.
            ValueError: if an id is known already or given twice, a modality is not the model's, or a vector has
                another width or scale, is not finite, or is missing for an item in every modality.
        """
        model = self.model
        if not isinstance(model, MML):
            raise TypeError(f"add_items: expected an MML, got {type(model).__name__}, which takes in no items")
        given = {**({} if vectors is None else vectors), **more}
        own, columns = plain(ids, "add_items"), {} if attributes is None else attributes
        self._states.grow(lambda known: new_items(known, model.scales, own, given, columns))

    def remove_items(self, ids: Ids) -> None:
        """Recommend these items no more; they stay known as clicks.

        Raises:
            ValueError: if an id is not known.
        """
        self._states.hide(plain(ids, "remove_items", ordered=False), frozenset.union)

    def restore_items(self, ids: Ids) -> None:
        """Recommend removed items again.

        Raises:
            ValueError: if an id is not known.
        """
        self._states.hide(plain(ids, "restore_items", ordered=False), frozenset.difference)

    def save(self, path: str | Path) -> None:
        """Write all that it serves to one file: the model with the items added and removed so far, and ``new_share``.

        ``metarec.load`` reads the model of such a file. Users have files of their own: :meth:`Users.save`.

        Raises:
            TypeError: if the model is not an :class:`~metarec.MML`.
            OSError: if the file cannot be written.
        """
        write_model(self.model, path, {"new_share": self.new_share})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Recommender:
        """From a file that :meth:`save` or ``metarec.save`` wrote, a recommender that gives the same lists.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as for ``metarec.load``.
        """
        model, header = read_model(path, device=device)
        share = header.get("new_share")
        if share is not None and not (isinstance(share, float) and 0 < share < 1):
            raise ValueError(f"{path}: new_share must be a number between 0 and 1, got {share!r}; save it again")
        return cls(model, new_share=share)

    def load_users(self, path: str | Path) -> Users:
        """Users that :meth:`Users.save` wrote, if this model adapted to them.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, holds something else, or its users belong to another model.
        """
        state = self._states.current()
        clicks, standing = read_users(path, state.model, state.catalog.size, state.snapshot)
        return Users(self, clicks, standing.to(state.snapshot.device), state.version)

    def save_users(self, users: Users, path: str | Path) -> None:
        """As :meth:`Users.save`."""
        write_users(path, self._of(users).model, users.clicks, users.standing)

    def __copy__(self) -> Self:
        """Another recommender of the same model; what is added to one is not in the other."""
        out = type(self).__new__(type(self))
        vars(out).update(vars(self), _states=copy.copy(self._states))
        return out

    def _current(self) -> Snapshot:
        return self._states.current().snapshot

    @property
    def _support(self) -> SupportMaker:
        return self._states.current().support

    def _adapted(self, state: State, asked: Clicks | Spelled, start: Tensor | None = None) -> Users:
        standing = adapted(state.snapshot, state.support, asked, start)
        clicks = asked if isinstance(asked, Clicks) else asked.clicks
        return Users(self, clicks, checked(standing, clicks, state.catalog, state.snapshot.names), state.version)

    def _of(self, users: Users) -> State:
        """The current state, which users belong to."""
        state = self._states.current()
        if users.recommender is not self or users.version != state.version:
            raise ValueError(
                "recommend: the model's weights have changed since these users were adapted to; adapt to them again"
            )
        return state
