"""What adapted users ask of the recommender that made them: lists, weights, scores, what follows more clicks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.containers import plain
from metarec.data.dataset import Catalog
from metarec.data.histories import Clicks
from metarec.functional.histories import check_exclude_seen, leaves_out_seen
from metarec.serving.adapting import Asked, encoded, further
from metarec.serving.listing import Wanted, listed
from metarec.serving.lists import Recommendations
from metarec.serving.state import State, States
from metarec.serving.storage import write_users
from metarec.serving.users import Ids, Users


class Answers:
    """The base of :class:`~metarec.Recommender`: all that is asked for users who were adapted to."""

    _states: States

    @property
    def catalog(self) -> Catalog:
        """The items, with those that were added."""
        return self._states.current().catalog

    @property
    def learners(self) -> tuple[str, ...]:
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
        columns: int | None = None,
    ) -> Recommendations:
        """As :meth:`Users.recommend`, without its warning; ``columns`` of the catalogue are scored at once."""
        state = self._of(users)
        check_exclude_seen("recommend", exclude_seen)
        leave_out = leaves_out_seen(state.model.repeat_share) if exclude_seen is None else exclude_seen
        wanted = Wanted.of(k, leave_out, allow, deny, candidates)
        with torch.no_grad():
            out = listed(wanted, state.scores(users.state), users.clicks, state.known, state.catalog, columns)
        self._of(users)
        return out

    def weights_of(self, users: Users) -> NDArray[np.float32]:
        """As :attr:`Users.weights`."""
        with torch.no_grad():
            return self._of(users).model.user_weights(users.state).float().cpu().numpy()

    def scores_of(self, users: Users) -> Tensor:
        """(B, I) every score, for a few users."""
        state = self._of(users)
        with torch.no_grad():
            return state.scores(users.state).approximate(0, state.catalog.size)

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
        return Users(self, whole, further(state, whole, more.counts, users.state), users.version)

    def save_users(self, users: Users, path: str | Path) -> None:
        """As :meth:`Users.save`."""
        write_users(path, self._of(users).model, users.clicks, users.state)

    def _adapted(self, state: State, asked: Asked) -> Users:
        found = encoded(state, asked)
        clicks = asked.clicks if isinstance(asked.clicks, Clicks) else asked.clicks.clicks
        return Users(self, clicks, found, state.version)

    def _of(self, users: Users) -> State:
        """The current state, which users belong to."""
        state = self._states.current()
        if users.recommender is not self or users.version != state.version:
            raise ValueError(
                "recommend: the model's weights have changed since these users were adapted to; adapt to them again"
            )
        return state
