"""Serving: a new user's clicks in, a ranked list of external ids out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from metarec.data.containers import is_single, plain, whole
from metarec.data.histories import Clicks, histories
from metarec.data.new_clicks import click_data
from metarec.data.new_items import Vectors, new_items
from metarec.data.observed import Histories, Observed
from metarec.data.profiles import profile_rows
from metarec.data.vocabulary import Id
from metarec.io import read_model, write_model
from metarec.learning import DAY, PER_DAY, PER_ITEM
from metarec.model import Model
from metarec.nn.record import longest_history, record_of
from metarec.recommendations import Reason, Recommendation, Recommendations
from metarec.saving.users import read_users
from metarec.serving.adapting import EncodeRequest, clock, encoded
from metarec.serving.listing import Ids
from metarec.serving.state import State, States
from metarec.serving.users import Answers, User, Users
from metarec.types import Method
from metarec.wrapped import as_model

When = float | Sequence[float] | None
Profile = Mapping[str, Any]

__all__ = ["Observed", "Reason", "Recommendation", "Recommendations", "Recommender", "User", "Users"]


class Recommender(Answers):
    """Serves new users with a trained model, one or a hundred thousand, and takes in new items while it runs.

    What does not depend on the user is computed once, at the first call and again after the model's numbers or its
    catalogue have changed; after a part of it was exchanged or hooked, make a new one. Runs where the model is and in
    evaluation mode; the model is left as it was. The same clicks give the same list, whoever else is adapted to at the
    same time. Any number of threads may call it; each call sees one catalogue and one set of weights. Ids are those of
    the data, in any container that has an order (lists, columns of pandas or polars, generators), never by label.

    Args:
        model: whatever ranks: an ensemble, an :class:`~metarec.MML`, counts, trained or loaded; a method of your own
            that has a ``catalog`` and ``warm``, or has them by ``as_model(method, upstream)``.
        new_share: of the places in lists of ten, what items that training has not seen get, on average over typical
            users: one number is added to all their scores. Choose it on upstream data, see ``benchmarks/new_items.py``.

    Raises:
        TypeError: if the model does not say which items it scores.
        ValueError: if ``new_share`` is not between 0 and 1.

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

    def __init__(self, model: Model | Method, *, new_share: float | None = None) -> None:
        if new_share is not None and not 0 < new_share < 1:
            raise ValueError(f"Recommender: new_share must be between 0 and 1, got {new_share}")
        served = as_model(model)
        record_of(model).warn(type(model).__name__, stacklevel=3)
        self.new_share = new_share
        self._states = States(served, new_share)
        self._histories = Histories(longest_history(served), (PER_DAY, PER_ITEM))

    @property
    def model(self) -> Model:
        """The model, with the items that were added or removed."""
        return self._states.model

    @overload
    def adapt(  # type: ignore[overload-overlap]
        self,
        history: Sequence[Id],
        *,
        keep_weights: bool = False,
        at: When = None,
        last: When = None,
        profile: Profile | None = None,
        kinds: Sequence[str] | None = None,
    ) -> User: ...
    @overload
    def adapt(
        self,
        history: Sequence[Sequence[Id]],
        *,
        keep_weights: bool = False,
        at: When = None,
        last: When = None,
        profile: Sequence[Profile | None] | None = None,
        kinds: Sequence[Sequence[str] | None] | None = None,
    ) -> Users: ...
    def adapt(
        self,
        history: Sequence[Id] | Sequence[Sequence[Id]],
        *,
        keep_weights: bool = False,
        at: When = None,
        last: When = None,
        profile: Profile | Sequence[Profile | None] | None = None,
        kinds: Sequence[Any] | None = None,
    ) -> User | Users:
        """Adapt to one user's clicks, or to those of many users.

        A user with one click has nothing to adapt to and is served by the shared weights. One without any gets the
        unadapted ranking, that of the average state after one likely click. ``adapted`` says which. Many users are
        adapted to thousands at a time, in halves, which are logged, where a GPU's memory is too small.

        Args:
            history: external ids of what the user clicked, in time order, or one such sequence per user; the last
                that the model reads count. ``[]`` is one user without clicks, ``[[]]`` the same as many.
            keep_weights: let the handle carry the adapted weights, about a megabyte a user instead of a kilobyte at
                the default sizes, so that :meth:`Users.update` goes on from them; see there.
            at: when the lists are asked for, in the units of the data, one time or one per user: live counts then
                count what came before. By default now, after all clicks that they know.
            last: when each user clicked last, if known, likewise: an ensemble's weights depend on how long ago.
            profile: what is known of the user, by column of ``users=`` that the model was fitted on, as
                ``{"age": 30}``; of many users one such mapping, or None, each. It counts after clicks, too.
            kinds: of several kinds of events, that of each in ``history``; of many users one such sequence, or None.

        Raises:
            ValueError: if an id is not known (naming it and the nearest known ones), no modality knows any of a user's
                items, a score is not finite, weights are to be kept of a model that adapts item rows too, or a profile
                has a column, or an event a kind, that the model does not know.
        """
        entries, state = plain(history, "adapt"), self._states.current()
        one = all(map(is_single, entries))
        clicks = histories([entries] if one else entries, [kinds] if one and kinds else kinds, state.catalog)
        asking, given = len(clicks.counts), [profile] if one else profile
        told = None if profile is None else profile_rows(state.model.profile, given, asking)
        timed = clock(asking, at, last, state)
        users = self._adapted(state, EncodeRequest(clicks, *timed, keep_weights=keep_weights, profile=told))
        return User(users) if one else users

    def user(self, user: Id, *, at: float | None = None) -> User:
        """A user whose clicks were observed, adapted to them; see :meth:`observe`.

        Args:
            user: the id.
            at: when the list is asked for; by default now, at the time of the last click that was observed.

        Raises:
            ValueError: if no click of the user was observed.
        """
        codes, last = self._histories.of(user)
        state, until = self._states.current(), self._histories.until
        when, gap = clock(1, until if at is None else at, last, state)
        asked = EncodeRequest(Clicks(codes, np.array([0, len(codes)])), None if at is None else when, gap)
        return User(self._adapted(state, asked))

    def observe(self, clicks: Any) -> Observed:
        """Take in everybody's new clicks: every count of the model moves on, and the histories of their users.

        Weights stay as they are, and so do users adapted before: what counts live moves on in their lists too. Of a
        user and a day, the first 200 clicks count, and of those the first 10 on an item: a robot moves counts no more.

        Args:
            clicks: a frame, or a mapping of columns, ``user`` (ids, known or not), ``item`` (known ids) and ``time``
                (numbers in the units of the data, or datetimes, dates or ISO text; none before the last click that is
                known); of a model of several kinds of events, a column ``kind``, too. Without it all are clicks.

        Returns:
            How many clicks of how many users, which users are new, and how many clicks did not count.

        Raises:
            ValueError: if an item is not known, a time is no number or before the last click that is known (naming
                user, item and time), or a column is missing. Nothing has changed then.
        """
        return self._states.change(lambda state: self._observed(state, clicks))

    def _observed(self, state: State, clicks: Any) -> Observed:
        data = click_data(clicks, state.catalog, self._histories.until, state.model.second)
        return self._histories.extend(data, DAY * state.model.second, state.model.observe)

    def stream(self, histories: Iterable[Sequence[Id]], *, users: int = 4096) -> Iterator[Users]:
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
            yield self._adapted(state, EncodeRequest(Clicks.of(piece, state.catalog.items)))

    def add_items(
        self,
        ids: Sequence[Id],
        vectors: Mapping[str, Vectors] | None = None,
        *,
        attributes: Mapping[str, Sequence[Any]] | None = None,
        **more: Vectors,
    ) -> None:
        """Take new items in: from now on they can be clicked and are recommended; nothing is trained.

        Codes and vectors of the other items stay as they are, and users adapted before stay valid: they can be
        recommended the new items at once.

        Args:
            ids: external ids, none of them known yet.
            vectors: feature vectors by modality, as they come (not standardised): (n, F) in the order of the ids, or
                by id, where items may be missing. Every item needs one in at least one modality.
            attributes: one string per id by column of the catalogue, e.g. ``{"title": [...]}``; of one that is learned
                from, its values: a text, a list of them or a number each, or None.
            more: vectors as keywords, e.g. ``text=...``.

        Raises:
            TypeError: if the model takes in no items.
            ValueError: if an id is known already or given twice, a modality is not the model's, an attribute is no
                number, or a vector has another width or scale, is not finite, or is missing in every modality.
        """
        given = {**({} if vectors is None else vectors), **more}
        own, columns = plain(ids, "add_items"), {} if attributes is None else attributes
        self._states.add_items(lambda model, known: new_items(known, model.scales or {}, own, given, columns))

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
            TypeError: if the model has no ``state()``, or is not registered.
            OSError: if the file cannot be written.
        """
        write_model(self.model, path, {"new_share": self.new_share})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Recommender:
        """From a file that :meth:`save` or ``metarec.save`` wrote, a recommender that gives the same lists.

        Raises:
            FileNotFoundError, ValueError: as for ``metarec.load``.
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
        clicks, found = read_users(path, state.model, lambda keep: state.encode_empty(keep_weights=keep))
        return Users(self, clicks, found.to(state.device), state.version)

    def _adapted(self, state: State, asked: EncodeRequest) -> Users:
        clicks = asked.clicks if isinstance(asked.clicks, Clicks) else asked.clicks.clicks
        return Users(self, clicks, encoded(state, asked), state.version)

    def __copy__(self) -> Self:
        """Another recommender of the same model; what is added to one is not in the other."""
        out = type(self).__new__(type(self))
        vars(out).update({**vars(self), "_states": copy.copy(self._states), "_histories": self._histories.copy()})
        return out
