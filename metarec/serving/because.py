"""Why an item is recommended: leave each click out, adapt to what is left, and see where the item goes.

A user who clicked n items becomes n + 1 imagined users, one with all clicks and one without each item; those of all
users are adapted to in one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.histories import Clicks
from metarec.data.vocabulary import Ints
from metarec.functional.kinds import items_of
from metarec.recommendations import Reason
from metarec.scoring import UserState
from metarec.serving.adapting import EncodeRequest, checked, profiles_of, unchecked
from metarec.serving.ranking import USERS, chunks
from metarec.serving.state import State


@dataclass(frozen=True, eq=False)
class Imagined:
    """Users as they would be without one of their items.

    Attributes:
        clicks: of N imagined users; those of a user stand together, the one with all clicks first.
        owner: (N,) the user that each belongs to.
        left_out: (N,) the item code that is left out; 0 for none.
    """

    clicks: Clicks
    owner: Ints
    left_out: Ints

    @classmethod
    def of(cls, clicks: Clicks, longest: int) -> Imagined:
        """Those of B users; of a longer history than ``longest``, only what was clicked last is left out.

        Example:
            >>> imagined = Imagined.of(Clicks.join([np.array([3, 1, 3]), np.array([2])]), longest=50)
            >>> imagined.left_out.tolist(), imagined.owner.tolist(), imagined.clicks.codes.tolist()
            ([0, 1, 3, 0, 2], [0, 0, 0, 1, 1], [3, 1, 3, 3, 3, 1, 2])
        """
        parts, owner, left_out = [], [], []
        for user in range(len(clicks)):
            own = clicks.user(user)
            items = items_of(own)
            for code in (0, *np.unique(items[-longest:]).tolist()):
                parts.append(own[items != code])
                owner.append(user)
                left_out.append(code)
        return cls(Clicks.join(parts), np.array(owner), np.array(left_out))


def reasons(state: State, clicks: Clicks, codes: Ints, users: UserState, k: int) -> list[list[list[Reason]]]:
    """The k clicked items that moved each item up most; arguments as for :func:`click_effects`.

    Returns:
        For each user and each of the M items at most k reasons, the strongest first.
    """
    out, items = [], state.catalog.items
    for clicked, effects in click_effects(state, clicks, codes, users):
        order = np.argsort(-effects, axis=0, kind="stable")[:k].T
        names = items.decode(clicked.tolist())
        out.append([[Reason(names[n], float(effects[n, m])) for n in best] for m, best in enumerate(order.tolist())])
    return out


def click_effects(
    state: State, clicks: Clicks, codes: Ints, users: UserState
) -> list[tuple[Ints, NDArray[np.float64]]]:
    """By how much each clicked item moves some items up, in standard deviations of a user's scores.

    Args:
        state: what serves.
        clicks: of B users.
        codes: (B, M) int64, for each user the items that it is about.
        users: their states, which say when they ask.

    Returns:
        For each user the codes of the clicked items (n,), and their effects (n, M).
    """
    imagined = Imagined.of(clicks, state.support.max_length)
    owner = torch.from_numpy(imagined.owner)
    found, items = _encoded(state, imagined, users), torch.from_numpy(codes)[owner].to(state.device)
    places = []
    with torch.no_grad():
        for some in chunks(len(owner), USERS[state.device.type]):
            part = slice(some.start, some.stop)
            scores = state.scores(found[part])
            mean, deviation = (moment.unsqueeze(1) for moment in scores.moments())
            places.append(((scores.exact(items[part]) - mean) / torch.where(deviation > 0, deviation, 1)).cpu())
    place = torch.cat(places).numpy()
    starts = np.append(np.flatnonzero(imagined.left_out == 0), len(place))
    spans = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    return [(imagined.left_out[first + 1 : stop], place[first] - place[first + 1 : stop]) for first, stop in spans]


def _encoded(state: State, imagined: Imagined, users: UserState) -> UserState:
    """The imagined users' states; who is left with nothing that the model knows is a user without clicks."""
    clicks = imagined.clicks
    times = [*users.named("time").values()]
    at = times[0].double().cpu().numpy()[imagined.owner] if times else None
    profile = profiles_of(users, imagined.owner)
    found = unchecked(state, EncodeRequest(clicks, at, profile=profile))
    lost = _lost(found, clicks)
    if lost.any():
        clicks = Clicks.join([np.zeros(0, np.int64) if gone else clicks.user(n) for n, gone in enumerate(lost)])
        found = unchecked(state, EncodeRequest(clicks, at, profile=profile))
    return checked(found, clicks, state)


def _lost(found: UserState, clicks: Clicks) -> NDArray[np.bool_]:
    active: Tensor = found.active.cpu()
    return ~active.numpy() & (clicks.counts > 0)
