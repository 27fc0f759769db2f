"""From clicks to where users stand, for any number of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Catalog, Ints
from metarec.functional import top_k
from metarec.functional.fusion import NotFiniteError
from metarec.meta.memory import halves, in_halves
from metarec.serving.clicks import Clicks, Spelled, SupportMaker
from metarec.serving.ranking import pieces
from metarec.serving.snapshot import Snapshot
from metarec.serving.standing import Standing

USERS = {"cpu": 2048, "cuda": 16384}  # users adapted to at once
FEW = {"cpu": 8, "cuda": 1}  # so few go one by one: what is made for one user beats a batch that small
FIRST_CLICKS = 1024  # warm items, evenly spaced, after which the next click is asked for
LIKELY = 256  # most likely next clicks, whose states are averaged for a user without clicks


def adapted(
    snapshot: Snapshot, support: SupportMaker, clicks: Clicks | Spelled, start: Tensor | None = None
) -> Standing:
    """Where B users stand after their clicks, some at a time; fewer where the GPU's memory turns out too small.

    Args:
        snapshot: the model.
        support: makes the examples.
        clicks: of each user.
        start: (B, M, P) weights that each user's steps start from; the weights that they lead to are kept.

    Raises:
        ValueError: if there is no user, or an id is not known.
    """
    order = np.argsort(-clicks.counts, kind="stable")
    order, without = order[clicks.counts[order] > 0], np.flatnonzero(clicks.counts == 0)
    parts = []

    def work(part: range) -> Standing:
        users = order[part.start : part.stop]
        own = None if start is None else start[torch.from_numpy(users).to(start.device)]
        return snapshot.adapt(*support(clicks[users]), own)

    for some in pieces(len(order), 1 if len(order) <= FEW[snapshot.device.type] else USERS[snapshot.device.type]):
        parts += [standing for _, standing in in_halves(work, some, halves)]
    if len(without):
        stranger = unadapted(snapshot, support)[torch.zeros(len(without), dtype=torch.int64)]
        own = None if start is None else start[torch.from_numpy(without).to(start.device)]
        parts.append(replace(stranger, weights=own))
    if not parts:
        raise ValueError("adapt: there is no user; pass at least one sequence of item ids")
    back = torch.from_numpy(np.argsort(np.concatenate([order, without]), kind="stable"))
    return Standing.join(parts)[back.to(snapshot.device)]


def further(snapshot: Snapshot, support: SupportMaker, clicks: Clicks, more: Ints, before: Standing) -> Standing:
    """Where B users stand after more clicks; those who have none stay where they stood.

    Args:
        snapshot: the model.
        support: makes the examples.
        clicks: all of each user.
        more: (B,) how many of them are new; somebody has some.
        before: where the users stood; if they carry weights, their steps start from those.
    """
    new, old = np.flatnonzero(more), np.flatnonzero(more == 0)
    start = None if before.weights is None else before.weights[torch.from_numpy(new)]
    if not len(old):
        return adapted(snapshot, support, clicks, start)
    fresh = adapted(snapshot, support, clicks[new], start)
    order = torch.from_numpy(np.argsort(np.concatenate([new, old])))
    return Standing.join([fresh, before[torch.from_numpy(old)]])[order]


def unadapted(snapshot: Snapshot, support: SupportMaker) -> Standing:
    """Where a user without clicks stands: at the average state after one click on a likely item, (1, ...).

    Nobody counts clicks here; what is likely is what the model itself expects next after any one click. Weighting by it
    matters: the plain average over all items ranks what people click first at half the recall of popularity.
    """
    if snapshot.stranger is not None:
        return snapshot.stranger
    each, share = likely_users(snapshot, support)
    weight = share.unsqueeze(-1) * each.active
    state = (each.state * weight.unsqueeze(-1)).sum(0, keepdim=True) / weight.sum(0).clamp(min=1e-30).unsqueeze(-1)
    rows, corrections = each.rows[:1, :, :0], each.corrections[:1, :, :0]
    snapshot.stranger = Standing(state, each.active.any(0, keepdim=True), rows, corrections)
    return snapshot.stranger


def likely_users(snapshot: Snapshot, support: SupportMaker) -> tuple[Standing, Tensor]:
    """Users of one click each on the items that the model expects most, and how likely these are, (n,)."""
    some = support.warm[:: max(1, len(support.warm) // FIRST_CLICKS)]
    chances = snapshot.chances(snapshot.adapt(*support(_one_click_each(some))))[torch.from_numpy(support.warm)]
    share, likely = top_k(chances, min(LIKELY, len(chances)))
    return snapshot.adapt(*support(_one_click_each(support.warm[likely.cpu().numpy()]))), share


def _one_click_each(codes: Ints) -> Clicks:
    return Clicks(codes, np.arange(len(codes) + 1))


def checked(standing: Standing, clicks: Clicks, catalog: Catalog, names: Sequence[str] = ()) -> Standing:
    """Where users stand, if that can be served. ``names`` are those of the learners, for messages.

    Raises:
        ValueError: if no modality knows any of a user's items, or a score is not finite.
    """
    lost = ~standing.active.any(1)
    diverged = ~(standing.state.isfinite().all(2) & standing.corrections.isfinite().all(2))
    broken = diverged.any(1)
    if not bool((lost | broken).any()):
        return standing
    user = int((lost | broken).nonzero()[0])
    ids = catalog.items.decode(clicks.user(user)[:5].tolist())
    who = "" if len(clicks) == 1 else f"user {user}: "
    if bool(lost.any()):
        raise ValueError(
            f"adapt: {who}the model knows none of the items {ids}: they were not seen upstream and have no features; "
            "show popular items, or give the items features"
        )
    part = f" of learner {names[int(diverged[user].nonzero()[0])]!r}" if names else ""
    raise NotFiniteError(
        f"adapt: {who}the scores{part} after adapting to {ids} are not finite; the steps diverge: train or adapt with "
        "a lower learning rate"
    )
