"""Fusion weights from a rehearsal: the upstream side split once more in time, where cold users are known already.

Everything is made twice. Once from the earlier part of the upstream side, so that the users who start in its later
part are cold users with cold items, and the time between training and click is what it will be: they fit the weights
of a :class:`~metarec.recipes.blend.Blend`. Then from the whole upstream side, blended with the same weights. Nothing
after the split is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from metarec.data import Dataset, EpisodeSampler, split_by_time, split_time
from metarec.data.cutting import some_clicks, without_last
from metarec.functional.histories import leaves_out_seen
from metarec.recipes.blend import Blend, observe
from metarec.types import EpisodeBatch, Method

SCORES = 1 << 24  # of all items, for the users of a batch


def rehearsed(
    upstream: Dataset,
    make: Callable[[Dataset], dict[str, Method]],
    *,
    cold_users: float = 0.2,
    clicks: int = 3,
    context: bool = True,
    device: torch.device | str = "cpu",
) -> Blend:
    """A blend whose weights are those that would have served the latest of the upstream users best.

    Args:
        upstream: the upstream side of a split.
        make: trains the methods on an upstream side, by name; called twice.
        cold_users: share of the upstream users who play the cold ones.
        clicks: last clicks of each of them to fit to.
        context: whether weights depend on the user.
        device: where the blend goes.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.

    Example:
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import EASE, Popularity
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> blend = rehearsed(up, lambda data: {"popularity": Popularity(data), "ease": EASE(data)})
        >>> list(blend.methods), blend.fitted_until == float(up.time.max())
        (['popularity', 'ease'], True)
    """
    earlier, later = rehearsal_split(upstream, cold_users)
    rehearsal = Blend(make(earlier), torch.from_numpy(earlier.warm), context=context).to(device)
    leave_out = leaves_out_seen(upstream.known_repeat_share)
    rehearsal.fit(observe(rehearsal.methods, rehearsal.warm, last_clicks(later, clicks), exclude_seen=leave_out))
    blend = Blend(make(upstream), torch.from_numpy(upstream.warm), context=context).to(device)
    blend.take_weights(rehearsal)
    return blend


def rehearsal_split(upstream: Dataset, cold_users: float = 0.2, *, most: int = 2000) -> tuple[Dataset, Dataset]:
    """The earlier part of an upstream side, and its users who start later, so many of them at most.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late.
    """
    earlier, later = split_by_time(upstream, at=split_time(upstream, cold_users))
    if len(later.user_codes) > most:
        drawn = np.random.default_rng(0).choice(later.user_codes, most, replace=False)
        later = some_clicks(later, np.isin(later.user, drawn))
    return earlier, later


def last_clicks(data: Dataset, clicks: int, *, users_per_batch: int | None = None) -> Iterator[EpisodeBatch]:
    """Each user's last clicks, one after the other, each asked for from all clicks before it.

    A click is asked for only of users with three before it. By default 256 users come at once, fewer of a large
    catalogue.
    """
    users_per_batch = users_per_batch or min(256, max(1, SCORES // data.catalog.size))
    for taken in range(clicks):
        rest = without_last(data, taken, least=4)
        if len(rest):
            yield from EpisodeSampler(rest, part="serving", users_per_batch=users_per_batch).epoch(0)
