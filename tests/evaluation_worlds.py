"""Made-up clicks of cold users and a method that scores by hand, for the tests of the protocol and of baselines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.types import Examples, Scored, Scorer

ITEMS, USERS = 23, 37


def make_data(seed: int = 0) -> Dataset:
    """Users of 2 to 9 clicks (some too few for the protocol), items 18 and above cold."""
    rng = np.random.default_rng(seed)
    clicks = rng.integers(2, 10, size=USERS)
    user = np.repeat(np.arange(1, USERS + 1), clicks)
    warm = np.arange(ITEMS + 1) < 18
    warm[0] = False
    return Dataset(
        users=Vocabulary([f"u{i}" for i in range(USERS)], "user"),
        catalog=Catalog(Vocabulary([f"i{i}" for i in range(ITEMS)])),
        user=user,
        item=rng.integers(1, ITEMS + 1, size=len(user)),
        time=np.arange(len(user)),
        warm=warm,
        name="made up",
    )


def clicks_of(data: Dataset) -> Iterator[tuple[int, list[int]]]:
    for user in data.user_codes.tolist():
        yield user, data.item[data.user == user].tolist()


class Neighbours:
    """Scores by how close an item is to the last one read; what the user adapted to is pushed up."""

    table = torch.from_numpy(np.random.default_rng(1).permutation((ITEMS + 1) ** 2).reshape(ITEMS + 1, -1)).float()

    def adapt(self, support: Examples) -> Scorer:
        learned = torch.zeros(len(support), ITEMS + 1).scatter_add(1, support.target, support.weight * 100)

        def score(examples: Examples) -> Scored:
            last = examples.history.gather(1, examples.position)
            return scored(self.table[last] + learned[:, None])

        return score


def scored(scores: Tensor) -> Scored:
    return Scored(scores, scores[..., :1], torch.ones(scores.shape[-1]) > 0, torch.ones(scores.shape[:-1]) > 0)


def warm_only(data: Dataset) -> Dataset:
    """The clicks on items that are warm, as an upstream side has them."""
    keep = data.warm[data.item]
    return Dataset(data.users, data.catalog, data.user[keep], data.item[keep], data.time[keep], data.warm, "up")
