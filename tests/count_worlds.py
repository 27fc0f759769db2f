"""Random clicks with ties in time, cut into the calls in which they might arrive, and what is asked about them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.model import Model
from metarec.recipes import EASE, CoClicks, ItemKNN, LivePopularity, Popularity, Transitions
from metarec.recipes.lightgcn import LightGCN
from metarec.types import Examples

ITEMS = 30
SPAN = 400  # clicks are at whole times before that

LIVE: dict[str, Callable[[Dataset], Model]] = {
    "live popularity": lambda data: LivePopularity(data, window=60.0),
    "live popularity, all": lambda data: LivePopularity(data, window=1e9),
    "live popularity, decay": lambda data: LivePopularity(data, window=100.0, half_life=10.0),
    "transitions, live": lambda data: Transitions(data, live=True),
    "transitions, decay": lambda data: Transitions(data, half_life=60.0, live=True),
    "transitions, fast decay": lambda data: Transitions(data, half_life=3.0, live=True),
    "transitions, at once": lambda data: Transitions(data, half_life=0.2, live=True),
    "co-clicks, live": lambda data: CoClicks(data, live=True),
}
UPSTREAM: dict[str, Callable[[Dataset], Model]] = {
    "popularity": Popularity,
    "popularity, recent": lambda data: Popularity(data, since=200),
    "transitions": Transitions,
    "co-clicks": CoClicks,
    "EASE": lambda data: EASE(data, penalty=5.0),
    "EASE of some": lambda data: EASE(data, penalty=5.0, items=9),
    "ItemKNN": lambda data: ItemKNN(data, neighbours=4, shrink=2.0),
    "LightGCN": lambda data: LightGCN(data, dim=5),
}
ALL = {**LIVE, **UPSTREAM}


def world(seed: int, *, clicks: int = 500, users: int = 25, start: int = 0, late: bool = False) -> Dataset:
    """Clicks on the first 25 of 30 items, several at most times, ``late`` ever more; some users have none."""
    rng = np.random.default_rng(seed)
    names = [f"u{number}" for number in range(users + 3)]
    user, item = rng.integers(1, users + 1, clicks), rng.integers(1, 26, clicks)
    time = start + (SPAN * rng.random(clicks) ** (0.05 if late else 1)).astype(np.int64)
    order = np.lexsort((time, user))
    warm = np.zeros(ITEMS + 1, dtype=bool)
    warm[item] = True
    catalog = Catalog(Vocabulary([f"i{number}" for number in range(ITEMS)]))
    return Dataset(Vocabulary(names, "user"), catalog, user[order], item[order], time[order], warm)


def arrivals(data: Dataset, seed: int, calls: int, first: int) -> tuple[Dataset, list[Dataset]]:
    """The same clicks as one data set and in calls, cut anywhere; ties stand alike in both.

    The first call has the vocabulary of ``data`` and so many clicks at least, later ones have theirs, shuffled.
    """
    rng = np.random.default_rng(seed)
    arrived = np.lexsort((rng.random(len(data)), data.time))
    cuts = [0, *np.sort(rng.integers(first, len(data), calls - 1)).tolist(), len(data)]
    parts = [_sorted(data, arrived[start:stop]) for start, stop in itertools.pairwise(cuts)]
    return _sorted(data, arrived), [parts[0], *(_renamed(part, rng) for part in parts[1:])]


def _sorted(data: Dataset, rows: np.ndarray) -> Dataset:
    rows = rows[np.lexsort((np.arange(len(rows)), data.time[rows], data.user[rows]))]
    return replace(data, user=data.user[rows], item=data.item[rows], time=data.time[rows])


def _renamed(data: Dataset, rng: np.random.Generator) -> Dataset:
    """The same clicks under a vocabulary of their own."""
    names = rng.permutation([data.users.ids[code - 1] for code in np.unique(data.user)]).tolist()
    people = Vocabulary([*names, "somebody who never clicks"], "user")
    user = people.encode([data.users.ids[code - 1] for code in data.user])
    order = np.argsort(user, kind="stable")
    return replace(data, users=people, user=user[order], item=data.item[order], time=data.time[order])


def asked(seed: int, users: int = 12, *, time: list[float] | None = None, longest: int = 26) -> Examples:
    """Two queries of each user's history, which is between no click and the longest; at times, or now."""
    rng = np.random.default_rng(seed)
    length = np.append([0, longest], rng.integers(1, longest + 1, users - 2))
    history = np.where(np.arange(longest) < length[:, None], rng.integers(1, ITEMS + 1, (users, longest)), 0)
    position = torch.from_numpy(np.stack([np.maximum(length - 3, 0), np.maximum(length - 1, 0)], 1))
    target = torch.ones(users, 2, dtype=torch.int64)
    when = None if time is None else torch.from_numpy(rng.choice(time, (users, 2)))
    return Examples(torch.from_numpy(history), position, target, target.unsqueeze(2), torch.ones(users, 2), when)


def every_score(model: Model, query: Examples) -> torch.Tensor:
    """(N, I) float64."""
    size = model.catalog.size if model.catalog is not None else 0
    state = model.encode(query, query)
    return model.scores(state).exact(torch.arange(size).expand(len(state), -1))


def moments_seen(model: Model) -> Iterator[Any]:
    """Whatever of a model must stay as it is when another one moves on."""
    for query in (asked(1), asked(2, time=[50.0, 133.0, 399.0, 401.0])):
        yield every_score(model, query)


def arrivals_until(calls: list[Dataset], count: int, data: Dataset) -> Dataset:
    """The first calls as one data set under the whole vocabulary."""
    parts = [(data.users.encode([c.users.ids[u - 1] for u in c.user]), c.item, c.time) for c in calls[:count]]
    user, item, time = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((np.arange(len(user)), time, user))
    return replace(data, user=user[order], item=item[order], time=time[order])


def many(seed: int, clicks: int, start: int = 0) -> Dataset:
    """Clicks on 2,000 items, 20 a user."""
    rng = np.random.default_rng(seed)
    users = max(1, clicks // 20)
    user, item = np.sort(rng.integers(1, users + 1, clicks)), rng.integers(1, 2001, clicks)
    catalog = Catalog(Vocabulary([f"i{n}" for n in range(2000)]))
    people = Vocabulary([f"u{n}" for n in range(users)], "user")
    time = start + np.arange(clicks) % 50
    order = np.lexsort((time, user))
    return Dataset(people, catalog, user[order], item[order], time[order], np.ones(2001, dtype=bool))
