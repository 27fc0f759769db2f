"""A synthetic data set with a dial: how much the next click depends on who clicks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from metarec.data.dataset import Catalog, Dataset, Ints, Vocabulary
from metarec.types import Modality

PLANTED_SPLIT = 1_000_000
"""Last time of upstream: pass it as ``at`` to the split by time. It comes after 250 days."""

_CLUSTERS = 10
_CYCLES = np.array([1, 0, 3, 4, 2, 6, 7, 8, 9, 5])  # the successor inside cycles of 2, 3 and 5 clusters
_CLICKS = (8, 14)
_GAP = 100
_VIEWS = {"text": 24, "image": 16}


def planted(
    *,
    users: int = 2000,
    items: int = 300,
    adaptation: float = 1.0,
    noise: float = 0.0,
    shuffle_features: bool = False,
    seed: int = 0,
) -> Dataset:
    """Synthetic clicks of users who each follow a hidden rule, which a few of their clicks give away.

    The i-th item belongs to cluster ``i % 10`` (``catalog.attributes["cluster"]``). A user's rule is a
    permutation of the clusters in cycles of 2, 3 and 5; the next click is a uniform item of the cluster that
    the rule puts after the cluster of the current click. So the next cluster can be known, the item in it
    cannot: with c items in a cluster, recall@k is at most k / c.

    Every cluster is equally popular, so popularity is at chance, and where rules are personal the average
    over users says nothing of the next cluster. Cycles differ in length, so no fixed look-back finds it
    either. Any five transitions of a user hold the one that is asked for: a gradient step on them stores
    current cluster -> next cluster in the weights, while a model that does not adapt would first have to learn
    to look up what followed the last visit to the same cluster.

    Each user makes 8 to 14 clicks. The first 80% of the users end by :data:`PLANTED_SPLIT`; the others, the
    cold users, start after it. The last 10% of the items are cold: only cold users click them. Features are
    two random linear views, ``"text"`` and ``"image"``, of the cluster's code plus noise of the item's own.

    Args:
        users: how many users, at least 5.
        items: how many items, at least 20.
        adaptation: share of the users with a rule of their own; the others share one rule.
        noise: share of the clicks that are uniform over all items, whatever the rule; at 1 there is nothing
            to learn.
        shuffle_features: give every item the features of another at random, the same in both views. The
            clicks stay as they are, and cold items can no longer be told apart.
        seed: the only source of randomness.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> data = planted(users=100, items=50)
        >>> data
        Dataset(planted: 1,127 interactions, 22.8% repeats, 100 users, 50 items, modalities ['image', 'text'])
        >>> [data.catalog.attributes["cluster"][i] for i in (0, 1, 10, 49)]
        ['0', '1', '0', '9']
    """
    _check(users, items, adaptation, noise)
    rng, looks = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    cold = np.arange(users) >= users - users // 5
    item = _clicks(_rules(users, adaptation, rng), cold, items, noise, rng)
    count = rng.integers(_CLICKS[0], _CLICKS[1] + 1, users)
    start = rng.integers(1, PLANTED_SPLIT - _GAP * _CLICKS[1], users) + np.where(cold, PLANTED_SPLIT, 0)
    time = start[:, None] + np.cumsum(rng.integers(1, _GAP + 1, item.shape), axis=1)
    kept = np.arange(_CLICKS[1]) < count[:, None]
    code = np.repeat(np.arange(1, users + 1), count)
    catalog = Catalog(
        Vocabulary(f"item{i}" for i in range(items)),
        _features(items, shuffle_features, looks),
        {"cluster": [str(i % _CLUSTERS) for i in range(items)]},
    )
    people = Vocabulary((f"user{i}" for i in range(users)), what="user")
    warm = np.bincount(item[kept], minlength=items + 1) > 0
    return Dataset(people, catalog, code, item[kept], time[kept], warm, name="planted", day=PLANTED_SPLIT / 250)


def _check(users: int, items: int, adaptation: float, noise: float) -> None:
    for name, value, least in (("users", users, 5), ("items", items, 2 * _CLUSTERS)):
        if value < least:
            raise ValueError(f"planted: {name} must be at least {least}, got {value}")
    for name, share in (("adaptation", adaptation), ("noise", noise)):
        if not 0 <= share <= 1:
            raise ValueError(f"planted: {name} must be between 0 and 1, got {share}")


def _rules(users: int, adaptation: float, rng: np.random.Generator) -> Ints:
    """(users, 10) the cluster that follows each cluster."""
    shared = rng.permutation(_CLUSTERS)
    own = rng.permuted(np.tile(np.arange(_CLUSTERS), (users, 1)), axis=1)
    order = np.where(rng.random((users, 1)) < adaptation, own, shared)
    rules = np.empty_like(order)
    np.put_along_axis(rules, order, order[:, _CYCLES], axis=1)
    return rules


def _clicks(rules: Ints, cold: NDArray[np.bool_], items: int, noise: float, rng: np.random.Generator) -> Ints:
    """(users, 14) item codes; only cold users draw from the last 10% of the items."""
    users = np.arange(len(rules))
    known = np.where(cold, items, items - items // 10)
    cluster = rng.integers(0, _CLUSTERS, len(rules))
    columns = []
    for _ in range(_CLICKS[1]):
        inside = (known - cluster + _CLUSTERS - 1) // _CLUSTERS  # items of the cluster that the user can see
        ruled = cluster + _CLUSTERS * rng.integers(0, inside)
        clicked = np.where(rng.random(len(rules)) < noise, rng.integers(0, known), ruled)
        columns.append(clicked + 1)
        cluster = rules[users, clicked % _CLUSTERS]
    return np.stack(columns, axis=1)


def _features(items: int, shuffle: bool, rng: np.random.Generator) -> dict[str, Modality]:
    """The two views of every item, row 0 for padding."""
    width = min(_VIEWS.values())
    codes = rng.standard_normal((_CLUSTERS, width))
    own = codes[np.arange(items) % _CLUSTERS] + 0.3 * rng.standard_normal((items, width))
    views = {name: own @ rng.standard_normal((width, dim)) / np.sqrt(width) for name, dim in _VIEWS.items()}
    order = rng.permutation(items) if shuffle else np.arange(items)
    present = torch.arange(items + 1) > 0
    return {
        name: Modality(
            name, torch.tensor(np.vstack([np.zeros(view.shape[1]), view[order]]), dtype=torch.float32), present
        )
        for name, view in views.items()
    }
