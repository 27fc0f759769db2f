"""Adapted users as values, and what they ask of the recommender that made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.containers import is_single, plain, whole
from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.data.vocabulary import Id, Ints
from metarec.functional.histories import check_exclude_seen, leaves_out_seen
from metarec.functional.kinds import items_of
from metarec.recommendations import Reason, Recommendation, Recommendations
from metarec.saving.users import write_users
from metarec.scoring import UserState
from metarec.serving.adapting import updated_states
from metarec.serving.because import reasons
from metarec.serving.diversity import Diversity, diversified
from metarec.serving.listing import Ids, ListRequest, top_k_lists
from metarec.serving.state import State, States


class Answers:
    """The base of :class:`~metarec.Recommender`: all that is asked for users who were adapted to."""

    _states: States

    @property
    def catalog(self) -> Catalog:
        """The items, with those that were added."""
        return self._states.current().catalog

    @property
    def learners(self) -> tuple[Any, ...]:
        """Names of the learners that :attr:`User.weights` is about."""
        return tuple(self._states.current().model.learners)

    def rank(
        self,
        users: Users,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Ids | None = None,
        deny: Ids | None = None,
        candidates: Sequence[Ids] | None = None,
        diversity: Diversity | None = None,
        columns: int | None = None,
    ) -> Recommendations:
        """As :meth:`Users.recommend`, without its warning; ``columns`` of the catalogue are scored at once."""
        state = self._of(users)
        check_exclude_seen("recommend", exclude_seen)
        leave_out = leaves_out_seen(state.model.repeat_share) if exclude_seen is None else exclude_seen
        request = ListRequest.of(k, leave_out, allow, deny, candidates)
        score = lambda part: state.scores(users.state[part] if len(users) > 1 else users.state)  # noqa: E731

        def lists(request: ListRequest) -> Recommendations:
            with torch.no_grad():
                return top_k_lists(request, score, users.clicks.clicked, state.known, state.catalog, columns)

        longer = lambda k: lists(replace(request, k=k))  # noqa: E731
        return lists(request) if diversity is None else diversified(longer, request.k, diversity, state.catalog)

    def reasons(self, users: Users, codes: Ints, k: int) -> list[list[list[Reason]]]:
        """As :meth:`User.because`, for each user of the items (B, M) that have these codes."""
        return reasons(self._of(users), users.clicks, codes, users.state, k)

    def weights_of(self, users: Users) -> NDArray[np.float32]:
        """As :attr:`Users.weights`."""
        with torch.no_grad():
            return self._of(users).snapshot.user_weights(users.state).float().cpu().numpy()

    def scores_of(self, users: Users) -> Tensor:
        """(B, I) every score, for a few users."""
        state = self._of(users)
        with torch.no_grad():
            return state.scores(users.state).approximate(0, state.catalog.size)

    def updated(self, users: Users, clicks: Sequence[Sequence[Id]], kinds: Sequence[Any] | None = None) -> Users:
        """As :meth:`Users.update`."""
        state = self._of(users)
        clicks = plain(clicks, "update")
        if len(clicks) != len(users):
            raise ValueError(f"update: expected clicks for each of the {len(users)} users, got {len(clicks)} sequences")
        items, known = state.catalog.items, state.catalog.kinds
        more = Clicks.of(clicks, items) if kinds is None else Clicks.of_kinds(clicks, kinds, items, known)
        if not more.counts.any():
            return users
        whole = users.clicks.extended(more)
        return Users(self, whole, updated_states(state, whole, more.counts, users.state), users.version)

    def save_users(self, users: Users, path: str | Path) -> None:
        """As :meth:`Users.save`."""
        write_users(path, self._of(users).model, users.clicks, users.state)

    def _of(self, users: Users) -> State:
        """The current state, which users belong to."""
        state = self._states.current()
        if users.recommender is not self or users.version != state.version:
            raise ValueError(
                "recommend: the model's weights have changed since these users were adapted to; adapt to them again"
            )
        return state


@dataclass(frozen=True, eq=False, repr=False)
class Users:
    """B users that a model has adapted to: their clicks and their states, a kilobyte or two each.

    With ``adapt(..., keep_weights=True)`` also their adapted weights, about a megabyte each.

    Made by :meth:`Recommender.adapt <metarec.Recommender.adapt>`. Stays valid when items are added or removed.

    Attributes:
        recommender: who made it.
        clicks: all clicks, as item codes.
        state: what scoring needs.
        version: of the model's weights that it belongs to.
    """

    recommender: Answers
    clicks: Clicks
    state: UserState
    version: int

    def __len__(self) -> int:
        return len(self.clicks)

    def __repr__(self) -> str:
        return f"Users({len(self):,} users, {len(self.clicks.codes):,} clicks)"

    @overload
    def __getitem__(self, users: int) -> User: ...
    @overload
    def __getitem__(self, users: slice) -> Users: ...
    def __getitem__(self, users: int | slice) -> User | Users:
        """One user, or some of them.

        Raises:
            IndexError: if there is no such user.
        """
        if isinstance(users, slice):
            start, stop, step = users.indices(len(self))
            chosen = torch.arange(len(self))[start:stop:step] if step > 0 else torch.arange(start, stop, step)
            return Users(self.recommender, self.clicks[users], self.state[chosen], self.version)
        if not -len(self) <= users < len(self):
            raise IndexError(f"user {users}: there are {len(self)}")
        users %= len(self)
        return User(self[users : users + 1])

    def __iter__(self) -> Iterator[User]:
        return (self[user] for user in range(len(self)))

    @property
    def adapted(self) -> NDArray[np.bool_]:
        """(B,) whether there was something to learn from: at least 2 clicks."""
        return self.clicks.clicked.counts > 1

    @property
    def weights(self) -> NDArray[np.float32]:
        """(B, M) how much each of ``recommender.learners`` counts for each user."""
        return self.recommender.weights_of(self)

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Ids | None = None,
        deny: Ids | None = None,
        candidates: Sequence[Ids] | None = None,
        diversity: Diversity | None = None,
    ) -> Recommendations:
        """The k best items of each user; see :meth:`User.recommend`. ``candidates`` holds one collection per user."""
        wanted: dict[str, Any] = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny, "diversity": diversity}
        return self.recommender.rank(self, k, candidates=candidates, **wanted).say_if_short(int(k))

    def update(self, clicks: Sequence[Sequence[Id]], kinds: Sequence[Sequence[str] | None] | None = None) -> Users:
        """The same users after more clicks, one sequence per user (empty where there are none); kinds as in ``adapt``.

        Users with new clicks take inner steps on their whole history; the others are as they were. The steps start

        - from the shared weights, where the users do not carry theirs. The result always equals adapting afresh to the
          whole history, however the clicks were cut into updates.
        - from where the user stood, if it was adapted to with ``keep_weights=True``. Every update moves the weights
          further from the shared ones, the early clicks count in each, and the order of updates matters. The result
          equals adapting afresh only if the user had not moved yet: at most one click, or a model without steps.

        Raises:
            ValueError: if there is not one sequence per user, or as for ``adapt``.
        """
        return self.recommender.updated(self, clicks, kinds)

    def save(self, path: str | Path) -> None:
        """Write them to one file, without pickle; :meth:`~metarec.Recommender.load_users` reads it."""
        self.recommender.save_users(self, path)


@dataclass(frozen=True, eq=False, repr=False)
class User:
    """One user that a model has adapted to.

    Attributes:
        users: the user, as many.
    """

    users: Users

    def __repr__(self) -> str:
        last = f", the last on {self.history[-1]!r}" if self.history else ""
        return f"User({len(self.history)} clicks{last})"

    @cached_property
    def history(self) -> tuple[Any, ...]:
        """The external ids of the clicks, or events of all kinds, in time order."""
        return tuple(self.users.recommender.catalog.items.decode(items_of(self.users.clicks.codes).tolist()))

    @property
    def adapted(self) -> bool:
        """Whether there was something to learn from: at least 2 clicks."""
        return bool(self.users.adapted[0])

    @property
    def weights(self) -> dict[str, float]:
        """How much each learner counts for this user, by name; empty where the model fuses nothing."""
        return dict(zip(self.users.recommender.learners, self.users.weights[0].tolist(), strict=True))

    @cached_property
    def scores(self) -> Tensor:
        """(I,) the score of every item code, of which those that can be recommended mean something."""
        return self.users.recommender.scores_of(self.users)[0]

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        allow: Ids | None = None,
        deny: Ids | None = None,
        candidates: Ids | None = None,
        diversity: Diversity | None = None,
    ) -> list[Recommendation]:
        """The k best items, best first; ties in the order of the catalogue.

        Where fewer are left, the list is shorter, with a warning.

        Args:
            k: how many.
            exclude_seen: leave out what the user has clicked. By default where fewer than 2% of the clicks upstream are
                repeats, as in :func:`metarec.evaluate`; where the model does not say, they are left out.
            allow: only these ids; None for all.
            deny: none of these ids.
            candidates: score these ids only, and nothing else of the catalogue: what a retrieval stage found for this
                user. ``allow``, ``deny`` and ``exclude_seen`` hold for them too.
            diversity: a number from 0, as without it, to 1: the higher, the more the items of the list differ by their
                features. Or at most so many items of each category, by column of the catalogue's attributes, e.g.
                ``{"genres": 3}``; values of several words are several categories. The list is then in the order in
                which it was chosen, see :mod:`metarec.serving.diversity`.

        Raises:
            ValueError: if an id is not known, ``k`` is no whole number of at least 1, or ``diversity`` is neither, or
                about features or a column that the catalogue lacks.
        """
        own = None if candidates is None else [candidates]
        wanted: dict[str, Any] = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny, "diversity": diversity}
        return self.users.recommender.rank(self.users, k, candidates=own, **wanted).say_if_short(int(k))[0]

    @overload
    def because(self, items: Id, k: int = 3) -> list[Reason]: ...  # type: ignore[overload-overlap]
    @overload
    def because(self, items: Sequence[Id], k: int = 3) -> list[list[Reason]]: ...
    def because(self, items: Id | Sequence[Id], k: int = 3) -> list[Reason] | list[list[Reason]]:
        """Which clicked items moved an item up most, or each of several: the k strongest, strongest first.

        Each clicked item is left out once, with all clicks on it, and the rest adapted to; all that in one call.

        Raises:
            ValueError: if an id is not known, or ``k`` is no whole number of at least 1.
        """
        entries: Sequence[Any] = [items] if is_single(items) else plain(items, "because")
        codes = self.users.recommender.catalog.items.encode(entries)[None]
        found = self.users.recommender.reasons(self.users, codes, whole(k, "because: k"))[0]
        return found[0] if is_single(items) else found

    def update(self, clicks: Sequence[Id], kinds: Sequence[str] | None = None) -> User:
        """The same user after more clicks; see :meth:`Users.update`."""
        return self.users.update([clicks], None if kinds is None else [kinds])[0]

    def save(self, path: str | Path) -> None:
        """Write it to one file; ``recommender.load_users(path)[0]`` reads it."""
        self.users.save(path)
