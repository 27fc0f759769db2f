"""Serving: a new user's clicks in, a ranked list of external ids out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.recipes.growing import with_items
from metarec.recipes.mml import MML
from metarec.serving.adapting import adapted, checked
from metarec.serving.additions import Vectors, new_items
from metarec.serving.clicks import Clicks, Spelled, SupportMaker
from metarec.serving.exposure import shift_of
from metarec.serving.listing import Wanted, listed
from metarec.serving.servable import Servable, leaves_out, warn_untrained
from metarec.serving.snapshot import FusedSnapshot, Snapshot, snapshot_of
from metarec.serving.standing import Standing
from metarec.serving.storage import read_users, write_users
from metarec.serving.users import Ids, Recommendation, Recommendations, User, Users

__all__ = ["Recommendation", "Recommendations", "Recommender", "User", "Users"]


class Recommender:
    """Serves new users with a trained model, one or a hundred thousand, and takes in new items while it runs.

    What does not depend on the user is computed once, at the first call and again after the model or its catalogue
    has changed. Runs where the model is and in evaluation mode; the model is left as it was. The same clicks give the
    same list, whoever else is adapted to at the same time.

    Args:
        model: e.g. an :class:`~metarec.MML`, trained or loaded.
        new_share: of the places in lists of ten, what items that training has not seen get, on average over typical
            users: one number is added to all their scores. Choose it on upstream data, see
            ``benchmarks/new_items.py``. By default scores stay as the model gives them.

    Raises:
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
        >>> me.recommend(k=38, exclude_seen=True)
        Traceback (most recent call last):
        ...
        ValueError: recommend: k must be at least 1 and at most 37, the number of items that the model knows and that
        this user has not clicked, got 38
        >>> many = recommender.adapt([["item3", "item14", "item15"], ["item7"]])
        >>> many, many.recommend(k=5), many[0].recommend(k=1) == me.recommend(k=1)
        (Users(2 users, 4 clicks), Recommendations(2 users, 5 items each), True)
    """

    def __init__(self, model: Servable, *, new_share: float | None = None) -> None:
        if new_share is not None and not (0 < new_share < 1 and isinstance(model, MML)):
            raise ValueError(
                f"Recommender: new_share must be between 0 and 1, of an MML, got {new_share} of {type(model).__name__}"
            )
        warn_untrained(model)
        self.model = model
        self.new_share = new_share
        self.version = 0
        self._watched: object = None
        self._parameters: list[nn.Parameter] = []
        self._key: list[tuple[int, int]] = []
        self._snapshot: Snapshot | None = None
        self._support = SupportMaker(model.warm, model.config.negatives, model.config.max_length)

    @property
    def catalog(self) -> Catalog:
        """The items, with those that were added."""
        return self.model.catalog

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the learners that :attr:`User.weights` is about."""
        return self._current().names

    @overload
    def adapt(self, history: Sequence[str], *, keep_weights: bool = False) -> User: ...  # type: ignore[overload-overlap]
    @overload
    def adapt(self, history: Sequence[Sequence[str]], *, keep_weights: bool = False) -> Users: ...
    def adapt(self, history: Sequence[str] | Sequence[Sequence[str]], *, keep_weights: bool = False) -> User | Users:
        """Adapt to one user's clicks, or to those of many users.

        A user with a single click has nothing to adapt to and is served by the shared weights. A user without any
        click gets the unadapted ranking: that of the average state after one likely click. ``adapted`` says which.

        Many users are adapted to thousands at a time, and in halves of that where a GPU's memory turns out too small;
        so are lists made. The log says so, and the result is the same.

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
        if isinstance(history, str):
            raise ValueError(f"adapt: expected a sequence of item ids, got the string {history!r}; write [{history!r}]")
        one = all(isinstance(entry, str) for entry in history)
        clicks = Spelled([history] if one else history, self.catalog.items)  # type: ignore[list-item]
        start = self._current().start().expand(len(clicks.counts), -1, -1) if keep_weights else None
        users = self._adapted(clicks, start)
        return User(users) if one else users

    def stream(self, histories: Iterable[Sequence[str]], *, users: int = 4096) -> Iterator[Users]:
        """Adapt to any number of users in pieces, with memory for one piece.

        Args:
            histories: as for :meth:`adapt`, from anything that yields them.
            users: of one piece.
        """
        source = iter(histories)
        while piece := list(islice(source, users)):
            yield self._adapted(Clicks.of(piece, self.catalog.items))

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
        """As :meth:`Users.recommend`; ``columns`` is how much of the catalogue is scored at once."""
        snapshot = self._of(users)
        wanted = Wanted(k, leaves_out(self.model, exclude_seen), allow, deny, candidates)
        with torch.no_grad():
            scores = snapshot.scores(users.standing)
            return listed(wanted, scores, users.clicks, snapshot.known, self.catalog, columns)

    def weights_of(self, users: Users) -> NDArray[np.float32]:
        """As :attr:`Users.weights`."""
        snapshot = self._of(users)
        with torch.no_grad():
            return snapshot.weights(users.standing).float().cpu().numpy()

    def scores_of(self, users: Users) -> Tensor:
        """(B, I) every score, for a few users."""
        snapshot = self._of(users)
        with torch.no_grad():
            return snapshot.scores(users.standing).approximate(0, self.catalog.size)

    def updated(self, users: Users, clicks: Sequence[Sequence[str]]) -> Users:
        """As :meth:`Users.update`."""
        self._of(users)
        if len(clicks) != len(users):
            raise ValueError(f"update: expected clicks for each of the {len(users)} users, got {len(clicks)} sequences")
        more = Clicks.of(clicks, self.catalog.items)
        new = np.flatnonzero(more.counts)
        if not len(new):
            return users
        whole = users.clicks.extended(more)
        held = users.standing.weights
        start = None if held is None else held[torch.from_numpy(new)]
        if len(new) == len(users):
            return self._adapted(whole, start)
        fresh, old = self._adapted(whole[new], start), np.flatnonzero(more.counts == 0)
        order = torch.from_numpy(np.argsort(np.concatenate([new, old])))
        standing = Standing.join([fresh.standing, users.standing[torch.from_numpy(old)]])[order]
        return Users(self, whole, standing, users.version)

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
                another width, is not finite, or is missing for an item in every modality.
        """
        if not isinstance(self.model, MML):
            raise TypeError(f"add_items: expected an MML, got {type(self.model).__name__}, which takes in no items")
        names = [name for name in self.model.learners if name != "id"]
        added = new_items(self.catalog, names, ids, {**(vectors or {}), **more}, attributes or {})
        self._current()
        if len(ids):
            self.model = with_items(self.model, added)
            version = self.version
            self._support = self._support.grown(self.catalog.size)
            self._current()
            self.version = version

    def remove_items(self, ids: Sequence[str]) -> None:
        """Recommend these items no more. They keep their codes and stay known as clicks.

        Raises:
            ValueError: if an id is not known.
        """
        self._hide(self.catalog.hidden | self._ids(ids, "remove_items"))

    def restore_items(self, ids: Sequence[str]) -> None:
        """Recommend removed items again.

        Raises:
            ValueError: if an id is not known.
        """
        self._hide(self.catalog.hidden - self._ids(ids, "restore_items"))

    def _ids(self, ids: Sequence[str], what: str) -> frozenset[str]:
        if isinstance(ids, str):
            raise ValueError(f"{what}: expected a sequence of ids, got the string {ids!r}; write [{ids!r}]")
        self.catalog.items.encode(ids)
        return frozenset(ids)

    def _hide(self, ids: frozenset[str]) -> None:
        model: Any = copy.copy(self.model)
        model.catalog = replace(self.catalog, hidden=ids)
        self.model = model

    def load_users(self, path: str | Path) -> Users:
        """Users that :meth:`Users.save` wrote, if this model adapted to them.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, holds something else, or its users belong to another model.
        """
        snapshot = self._current()
        clicks, standing = read_users(path, self.model, self.catalog.size, snapshot)
        return Users(self, clicks, standing.to(snapshot.device), self.version)

    def save_users(self, users: Users, path: str | Path) -> None:
        """As :meth:`Users.save`."""
        self._of(users)
        write_users(path, self.model, users.clicks, users.standing)

    def _adapted(self, asked: Clicks | Spelled, start: Tensor | None = None) -> Users:
        standing = adapted(self._current(), self._support, asked, start)
        clicks = asked if isinstance(asked, Clicks) else asked.clicks
        return Users(self, clicks, checked(standing, clicks, self.catalog), self.version)

    def _current(self) -> Snapshot:
        """The snapshot of the model as it is now."""
        if self._watched is not self.model:
            parameters = self.model.parameters() if isinstance(self.model, nn.Module) else ()
            self._watched, self._parameters = self.model, list(parameters)
        key = [(p.data_ptr(), p._version) for p in self._parameters]
        if self._snapshot is None or key != self._key:
            self.version += self._snapshot is not None
            self._snapshot, self._key = snapshot_of(self.model), key
            self._balance(self._snapshot)
        return self._snapshot

    def _balance(self, snapshot: Snapshot) -> None:
        """Give new items their share of the lists."""
        if self.new_share is None or not isinstance(snapshot, FusedSnapshot):
            return
        new = snapshot.known & ~torch.from_numpy(self.model.warm).to(snapshot.device)
        shift = new * shift_of(snapshot, self._support, new, self.new_share)
        snapshot.tables = replace(snapshot.tables, shift=shift)

    def _of(self, users: Users) -> Snapshot:
        """The snapshot that users belong to."""
        snapshot = self._current()
        if users.recommender is not self or users.version != self.version:
            raise ValueError(
                "recommend: the model's weights have changed since these users were adapted to; adapt to them again"
            )
        return snapshot
