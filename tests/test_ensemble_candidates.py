"""Weights are fitted to candidate scores: an ensemble must score users as it did there, whatever it is made of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import metarec as mr
from metarec.data import EpisodeSampler
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.functional.histories import seen_items
from metarec.recipes import Ensemble, Transitions
from metarec.recipes.candidates import CandidateScores, candidate_scores
from metarec.recipes.components import COMPONENTS, Setup
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.ensemble_form import FORMS, choose_form
from metarec.recipes.own_clicks import OwnClicks
from score_tables import scored

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


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("context", [False, True])
def test_an_ensemble_scores_as_its_candidate_scores_say(context: bool, repeats: bool) -> None:
    data = clicks()
    setup = Setup(data, live=data, day=4.0)
    members = {n: m for c in COMPONENTS if c.group in GROUPS for n, m in c.fit(setup).items()}
    batch = next(iter(EpisodeSampler(data, part="serving", users_per_batch=40).epoch(0)))
    asked = candidate_scores(members, torch.from_numpy(data.warm), [batch], exclude_seen=False)
    weights = ContextWeights(asked.names, context=context, repeats=repeats)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weights.weight.copy_(torch.rand(weights.weight.shape, generator=draw))
        if weights.repeat is not None:
            weights.repeat.copy_(torch.rand(weights.weight.shape, generator=draw) - 0.5)
    found = Ensemble(members, data, weights=weights).adapt(batch.support)(batch.query).scores[batch.query.weight > 0]
    expected = weights.fuse(asked.z, asked.unknown, asked.context, asked.repeat)
    assert len({"own clicks", "co-clicks, live", "EASE"} & set(members)) == 3
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], atol=1e-3, rtol=1e-3)
    for row, query in enumerate(batch.query.history):
        assert set(asked.repeat[row].nonzero().flatten().tolist()) == set(query.tolist()) - {0}


def test_items_clicked_before_are_weighed_apart(tmp_path: Path) -> None:
    """Each piece of the catalogue, each slice of the users, an ensemble of an ensemble, and after a save and a load."""
    data = clicks()
    members = {"transitions": Transitions(data), "own": OwnClicks(data)}
    weights = ContextWeights(list(members), context=False, repeats=True)
    plain = ContextWeights(list(members), context=False)
    other = ContextWeights(list(members), context=False)
    with torch.no_grad():
        for own, (first, second) in ((plain, (0.5, 0.2)), (other, (0.0, 0.9)), (weights, (0.5, 0.2))):
            own.weight[0] = torch.tensor([first, second])
        assert weights.repeat is not None
        weights.repeat[0] = torch.tensor([-0.8, 0.7])  # a weight below 0 is 0
    batch = next(iter(EpisodeSampler(data, part="serving", users_per_batch=40).epoch(0)))
    scores = [scored(Ensemble(members, data, weights=own), batch) for own in (weights, plain, other)]
    seen = seen_items(batch.query, 31)[:, 0]
    apart, usual, again = (own.approximate(0, 31) for own in scores)
    torch.testing.assert_close(apart[:, 1:], torch.where(seen, again, usual)[:, 1:])
    torch.testing.assert_close(scores[0][7:20].approximate(11, 25), apart[7:20, 11:25])
    codes = torch.arange(1, 31).expand(40, -1)
    torch.testing.assert_close(scores[0].exact(codes).float(), apart[:, 1:])
    known = apart[:, 1:].double()
    torch.testing.assert_close(scores[0].moments()[1], known.std(1, correction=0), atol=1e-5, rtol=1e-5)
    model = Ensemble(members, data, weights=weights)
    mr.save(model, tmp_path / "model.safetensors")
    loaded = mr.load(tmp_path / "model.safetensors")
    assert torch.equal(scored(loaded, batch).approximate(0, 31), apart)
    empty = model.scores(model.encode_empty()).approximate(1, 31)
    torch.testing.assert_close(
        empty, Ensemble(members, data, weights=plain).scores(model.encode_empty()).approximate(1, 31)
    )


def test_weights_for_repeats_are_learned_where_people_repeat() -> None:
    """What is clicked next is drawn by one table among what was clicked before, and by another among all else."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1500, 2, 30, generator=generator)
    repeat = torch.rand(1500, 30, generator=generator) < 0.3
    truth = torch.where(repeat, 3 * z[:, 1] - 1, 3 * z[:, 0])
    target = torch.multinomial(truth.softmax(1), 1, generator=generator).squeeze(1)
    nothing = torch.zeros(1500, 3)
    nothing[:, 0] = 1
    seen = CandidateScores(
        ("a", "b"), torch.arange(1500), target, z, torch.zeros(z.shape) > 0, nothing, torch.zeros(1500, 30), repeat
    )
    with_, without = (choose_form(own, forms=FORMS[3:4]) for own in (seen, replace(seen, repeat=repeat & False)))
    assert without.weights.repeat is None
    usual, again = with_.weights(nothing)[0][0], with_.weights.of_repeats(nothing)[0]
    assert usual[0] > 5 * usual[1] and again[1] > 1.5 * again[0]
    assert with_.forms[0].mean > without.forms[0].mean + 0.03
