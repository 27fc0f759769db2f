"""From clicks to user states, for any number of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.data.histories import Clicks, LazyHistories
from metarec.functional.fusion import NotFiniteError
from metarec.functional.kinds import items_of
from metarec.meta.memory import split_range, split_to_fit
from metarec.scoring import UserState
from metarec.serving.ranking import chunks
from metarec.serving.state import State

USERS = {"cpu": 2048, "cuda": 16384}  # users encoded at once


@dataclass(frozen=True, eq=False)
class EncodeRequest:
    """What is known of B users who ask.

    Attributes:
        clicks: of each user.
        at: (B,) float64, when each asks, in the units of the data; None for now, after all clicks that were counted.
        gap: (B,) float64, seconds since each one's last click; None where it is not known.
        start: states of the same users whose kept weights their inner steps start from.
        keep_weights: keep the weights that the steps lead to.
        profile: (B, P) what is known of each user; None where nothing is.
    """

    clicks: Clicks | LazyHistories
    at: NDArray[np.float64] | None = None
    gap: NDArray[np.float64] | None = None
    start: UserState | None = None
    keep_weights: bool = False
    profile: Tensor | None = None

    def encode(self, state: State, users: NDArray[np.int64]) -> UserState:
        """The states of some of the users, who have clicked something."""
        clock = (None if column is None else column[users] for column in (self.at, self.gap))
        start = None if self.start is None else self.start[torch.from_numpy(users)]
        profile = None if self.profile is None else self.profile[torch.from_numpy(users)]
        return state.encode(self.clicks[users], *clock, profile=profile, start=start, keep_weights=self.keep_weights)


def clock(
    users: int, at: float | Sequence[float] | None, last: float | Sequence[float] | None, state: State
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """When each of B users asks, (B,), and the seconds since their last clicks, (B,); None where that is not known.

    Raises:
        ValueError: if there is not one time, or one per user, or a user asks before the last click.
    """
    when, clicked = (_times(users, name, given) for name, given in (("at", at), ("last", last)))
    if clicked is None:
        return when, None
    if when is None:
        raise ValueError("adapt: last says when users clicked last, which means nothing without at, when they ask")
    if (when < clicked).any():
        user = int(np.argmax(when < clicked))
        raise ValueError(f"adapt: user {user} asks at {when[user]}, before the last click at {clicked[user]}")
    return when, (when - clicked) / state.model.second


def _times(users: int, name: str, given: float | Sequence[float] | None) -> NDArray[np.float64] | None:
    if given is None:
        return None
    times = np.asarray(given, dtype=np.float64)
    if times.ndim > 1 or (times.ndim == 1 and len(times) != users) or not np.isfinite(times).all():
        raise ValueError(f"adapt: {name} must be one time, or one for each of {users} users, all finite, got {given!r}")
    return np.broadcast_to(times, (users,))


def encoded(state: State, asked: EncodeRequest) -> UserState:
    """The states of B users, some at a time; fewer where the GPU's memory turns out too small.

    Raises:
        ValueError: if there is no user, an id is not known, the model knows none of a user's items, or a number is not
            finite.
    """
    found = unchecked(state, asked)
    return checked(found, asked.clicks if isinstance(asked.clicks, Clicks) else asked.clicks.clicks, state)


def unchecked(state: State, asked: EncodeRequest) -> UserState:
    """As :func:`encoded`, whatever the model knows of the users' items and whether the numbers are finite."""
    counts = asked.clicks.counts
    if isinstance(asked.clicks, Clicks) and not state.reads_kinds:
        counts = asked.clicks.clicked.counts
    order = np.argsort(-counts, kind="stable")
    order, without = order[counts[order] > 0], np.flatnonzero(counts == 0)
    kind, parts = state.device.type, []
    for some in chunks(len(order), USERS[kind]):
        parts += [s for _, s in split_to_fit(lambda p: asked.encode(state, order[p.start : p.stop]), some, split_range)]
    if len(without):
        parts.append(_empty(state, asked, without))
    if not parts:
        raise ValueError("adapt: there is no user; pass at least one sequence of item ids")
    found = UserState.join(parts)
    if len(counts) > 1:
        back = torch.from_numpy(np.argsort(np.concatenate([order, without]), kind="stable"))
        found = found[back.to(state.device)]
    return found


def _empty(state: State, asked: EncodeRequest, users: NDArray[np.int64]) -> UserState:
    out = state.encode_empty(keep_weights=asked.keep_weights)[torch.zeros(len(users), dtype=torch.int64)]
    at = None if asked.at is None else torch.tensor(asked.at)
    told = {
        name: given[torch.from_numpy(users)]
        for name, given in (("profile", asked.profile), ("time", at))
        if given is not None
    }
    return UserState(
        {**out.tensors, **{n: own.to(t) for name, own in told.items() for n, t in out.named(name).items()}}
    )


def profiles_of(users: UserState, rows: NDArray[np.int64]) -> Tensor | None:
    """(n, P) the profiles of some users, if their model reads any."""
    found = next(iter(users.named("profile").values()), None)
    return None if found is None else found[torch.from_numpy(rows).to(found.device)].cpu()


def updated_states(state: State, clicks: Clicks, more: NDArray[np.int64], before: UserState) -> UserState:
    """The states of B users after more clicks; those who have none stay as they were.

    Args:
        state: what serves.
        clicks: all of each user.
        more: (B,) how many of them are new; somebody has some.
        before: their states; if these carry weights, the steps start from those.
    """
    new, old = np.flatnonzero(more), np.flatnonzero(more == 0)
    keeps = bool(before.named("weights"))
    start = before[torch.from_numpy(new)] if keeps else None
    fresh = encoded(
        state, EncodeRequest(clicks[new], start=start, keep_weights=keeps, profile=profiles_of(before, new))
    )
    if not len(old):
        return fresh
    order = torch.from_numpy(np.argsort(np.concatenate([new, old])))
    return UserState.join([fresh, before[torch.from_numpy(old)]])[order]


def checked(found: UserState, clicks: Clicks, state: State) -> UserState:
    """User states, if they can be served.

    Raises:
        ValueError: if the model knows none of a user's items, or a number is not finite.
    """
    known = clicks if state.reads_kinds else clicks.clicked
    lost = ~found.active & torch.from_numpy(known.counts > 0).to(found.active.device)
    numbers, total = _numbers(found), torch.zeros((), device=lost.device)
    for tensor in numbers.values():
        total = total + tensor.sum()
    if bool(total.isfinite() & ~lost.any()):
        return found
    broken = {name: ~t.isfinite().all(1) for name, t in numbers.items()}
    failing = torch.stack([lost, *broken.values()]).any(0)
    if not bool(failing.any()):  # the sum alone was too large
        return found
    user = int(failing.nonzero()[0])
    ids = state.catalog.items.decode(items_of(clicks.user(user)[:5]).tolist())
    who = "" if len(clicks) == 1 else f"user {user}: "
    if bool(lost[user]):
        raise ValueError(
            f"adapt: {who}the model knows none of the items {ids}: they were not seen upstream and have no features; "
            "show popular items, or give the items features"
        )
    name = next(name for name, rows in broken.items() if rows[user])
    raise NotFiniteError(
        f"adapt: {who}the scores{_whose(found.tensors[name][user], name, state)} after adapting to {ids} are not "
        "finite; the steps diverge: train or adapt with a lower learning rate"
    )


def _numbers(found: UserState) -> dict[str, Tensor]:
    """What must be finite: all numbers but times, which may be unknown, and what is known of the context."""
    known = ("time", "context")
    return {
        n: t.reshape(len(t), -1)
        for n, t in found.tensors.items()
        if t.is_floating_point() and n.rpartition("/")[2] not in known
    }


def _whose(numbers: Tensor, name: str, state: State) -> str:
    """Of which learner or part numbers that are not finite are, in words."""
    part, names = name.rpartition("/")[0], list(state.model.learners)
    if part:
        return f" of {part!r}"
    if (len(names) < 2 and not names) or len(numbers) != len(names):
        return ""
    return f" of learner {names[int((~numbers.flatten(1).isfinite().all(1)).nonzero()[0])]!r}"
