"""Planted worlds: what is to be found in each is known, since it was put there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from metarec.data import Catalog, Dataset, Vocabulary
from metarec.data.dataset import Ints
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.types import Modality

REPEATED = 0.4  # share of the clicks that go back to an earlier one
COLD = 0.7  # share of the cold users' clicks on items that nobody upstream has seen


def personal(users: int = 1500) -> Dataset:
    """Each user has a rule of their own: only their own clicks tell it."""
    return replace(planted(users=users, items=100, adaptation=1.0), name="planted-personal")


def shared(users: int = 1500) -> Dataset:
    """One rule for everybody: the weights know it, and nothing is to be adapted."""
    return replace(planted(users=users, items=100, adaptation=0.0), name="planted-shared")


def noise(users: int = 1500) -> Dataset:
    """Nothing can be found."""
    return replace(planted(users=users, items=100, noise=1.0), name="planted-noise")


def sixty(users: int = 60) -> Dataset:
    """One rule for everybody, and few to learn it from."""
    return replace(planted(users=users, items=100, adaptation=0.0), name="planted-60")


def repeats(users: int = 1500) -> Dataset:
    """One rule for everybody, and two clicks in five go back to one of the user's own."""
    data, rng = planted(users=users, items=300, adaptation=0.0), np.random.default_rng(1)
    item = data.item.copy()
    place = np.arange(len(data)) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    for row in np.flatnonzero((place > 0) & (rng.random(len(data)) < REPEATED)):  # in order: what is repeated is known
        item[row] = item[row - rng.integers(1, place[row] + 1)]
    return _clicked(data, item, "planted-repeats")


def cold(users: int = 1500) -> Dataset:
    """One rule for everybody; most of what cold users click are new items, whose features tell what they are like."""
    data, rng = planted(users=users, items=200, adaptation=0.0), np.random.default_rng(2)
    old = data.catalog
    few = len(old.items)
    ids = Vocabulary((*old.items.ids, *(f"new{number}" for number in range(few))))
    views = {name: _twins(view, rng) for name, view in old.modalities.items()}
    catalog = Catalog(ids, views, {name: [*column, *column] for name, column in old.attributes.items()})
    later = np.repeat(data.time[data.offsets[:-1]] > PLANTED_SPLIT, np.diff(data.offsets))
    item = np.where(later & (rng.random(len(data)) < COLD), data.item + few, data.item)
    return _clicked(replace(data, catalog=catalog, warm=np.arange(catalog.size) > 0), item, "planted-cold")


def _twins(view: Modality, rng: np.random.Generator) -> Modality:
    """Each item again, a little different."""
    own = view.features
    twin = own + 0.3 * own.std() * torch.tensor(rng.standard_normal(own.shape), dtype=own.dtype)
    return view.followed_by(Modality(view.name, twin, view.present), len(own) - 1)


def _clicked(data: Dataset, item: Ints, name: str) -> Dataset:
    warm = np.bincount(item, minlength=data.catalog.size) > 0
    return replace(data, item=item, warm=warm, name=name)
