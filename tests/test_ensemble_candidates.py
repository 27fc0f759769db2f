"""Weights are fitted to candidate scores: an ensemble must score users as it did there, whatever it is made of."""

import numpy as np
import pytest
import torch

from metarec.data import EpisodeSampler
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.recipes import Ensemble
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.components import COMPONENTS, Setup
from metarec.recipes.context_weights import ContextWeights

GROUPS = ("counts", "more", "repeats", "live")


def clicks() -> Dataset:
    """Forty people who often come back to what they clicked."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(1, 41), 12)
    item = rng.integers(1, 31, len(user))
    again = rng.random(len(user)) < 0.4
    item[1:][again[1:]] = item[:-1][again[1:]]
    people, things = Vocabulary([f"u{n}" for n in range(40)], "user"), Vocabulary([f"i{n}" for n in range(30)])
    warm = np.arange(31) > 0
    return Dataset(people, Catalog(things), user=user, item=item, time=np.tile(np.arange(12), 40), warm=warm, day=4.0)


@pytest.mark.parametrize("context", [False, True])
def test_an_ensemble_scores_as_its_candidate_scores_say(context: bool) -> None:
    data = clicks()
    setup = Setup(data, live=data, day=4.0)
    members = {n: m for c in COMPONENTS if c.group in GROUPS for n, m in c.fit(setup).items()}
    batch = next(iter(EpisodeSampler(data, part="serving", users_per_batch=40).epoch(0)))
    asked = candidate_scores(members, torch.from_numpy(data.warm), [batch], exclude_seen=False)
    weights = ContextWeights(asked.names, context=context)
    with torch.no_grad():
        weights.weight.copy_(torch.rand(weights.weight.shape, generator=torch.Generator().manual_seed(1)))
    found = Ensemble(members, data, weights=weights).adapt(batch.support)(batch.query).scores[batch.query.weight > 0]
    expected = weights.fuse(asked.z, asked.unknown, asked.context)
    assert len({"own clicks", "co-clicks, live", "EASE"} & set(members)) == 3
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], atol=1e-3, rtol=1e-3)
