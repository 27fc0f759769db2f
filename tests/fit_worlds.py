"""Small worlds for fits, and trainings that are over soon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.model import Model
from metarec.recipes import adaptation, early_stopping, fitted_learner
from metarec.types import Modality


def shorten(patch: pytest.MonkeyPatch, *, epochs: int = 6) -> None:
    """Make trainings short, but not so short that nothing is validated."""
    patch.setattr(early_stopping, "PATIENCE", 10)
    patch.setattr(early_stopping, "EPOCHS", 1)
    patch.setattr(fitted_learner, "EPOCHS", epochs)
    patch.setattr(adaptation, "MOST", 4)


def sides(*, users: int = 220, bare: bool = False, adaptation: float = 1.0, noise: float = 0.0) -> tuple[Dataset, ...]:
    """A planted world, its upstream and downstream side; without features if it is to be bare."""
    data = planted(users=users, items=40, adaptation=adaptation, noise=noise)
    if bare:
        data = replace(data, catalog=Catalog(data.catalog.items))
    return data, *split_by_time(data, at=PLANTED_SPLIT)


def by_hand(
    histories: Sequence[Sequence[int]],
    items: int,
    *,
    start: Callable[[int], float] = lambda user: 100 * user,
    gap: float = 1,
    features: Sequence[Modality] = (),
    day: float | None = None,
) -> Dataset:
    """Users by their items (1 and up), the n-th from ``start(n)`` on, a click every ``gap``."""
    rows = [
        (user, item, start(user) + gap * place)
        for user, history in enumerate(histories, 1)
        for place, item in enumerate(history)
    ]
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    catalog = Catalog(Vocabulary([f"i{n}" for n in range(items)]), {one.name: one for one in features})
    people = Vocabulary([f"u{n}" for n in range(len(histories))], "user")
    return Dataset(people, catalog, user, item, time, np.bincount(item, minlength=items + 1) > 0, day=day)


def at_random(users: int, items: int, clicks: int, *, seed: int = 0, most: int | None = None) -> list[list[int]]:
    """Histories of uniform clicks; items above ``most`` are never clicked."""
    rng = np.random.default_rng(seed)
    found: list[list[int]] = rng.integers(1, (most or items) + 1, (users, clicks)).tolist()
    return found


def modality(name: str, features: Tensor, present: Tensor | None = None) -> Modality:
    """Of the items (I - 1, D), those that have it (I - 1,); all by default."""
    has = torch.ones(len(features), dtype=torch.bool) if present is None else present
    padded = torch.cat([features.new_zeros(1, features.shape[1]), features * has[:, None]])
    return Modality(name, padded, torch.cat([torch.tensor([False]), has]))


def scores(model: Model, data: Dataset) -> Tensor:
    """(users, items) of each user's next click."""
    batch = next(EpisodeSampler(data, part="serving", negatives=model.negatives, max_length=50).epoch(0))
    return model.scores(model.encode(batch.support, batch.query)).approximate(0, data.catalog.size)
