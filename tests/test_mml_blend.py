"""The whole recipe: each part and the weights against the same built by hand, and that it reads nothing late."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch

from metarec.data import Dataset, EpisodeSampler, split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import (
    EASE,
    MML,
    CoClicks,
    Ensemble,
    LivePopularity,
    MMLConfig,
    Popularity,
    Transitions,
    mml,
    mml_blend,
    sasrec,
    select_inner_steps,
    with_inner_steps,
)
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.components import Setup, of_groups
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.nested_validation import last_clicks
from metarec.types import Method
from metarec.wrapped import as_model

QUICK = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=1)
DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
DAY = PLANTED_SPLIT / 250


@pytest.fixture(scope="module")
def live() -> Ensemble:
    return mml_blend(UP, QUICK, live=DATA, day=DAY, sasrec_epochs=1)


def summed(data: Dataset, epochs: int = 1) -> Method:
    learner = sasrec.build(data, ("id", "image", "text"), dim=8, drop_inputs=0.2, seed=0)
    for _ in sasrec.train(learner, data, epochs=epochs, seed=0):
        pass
    return learner.eval()


def trained(data: Dataset) -> MML:
    model = MML.build(data, QUICK, seed=0)
    for _ in mml.train(model, EpisodeSampler(data, seed=0)):
        pass
    return model


BY_HAND: dict[str, Callable[[Dataset], Method]] = {
    "SASRec id+image+text": lambda data: summed(data),
    "popularity, all": Popularity,
    "popularity, recent": lambda data: Popularity(data, since=float(data.time.max()) - 90 * DAY),
    "EASE": lambda data: EASE(data, penalty=500.0),
    "transitions": Transitions,
    "co-clicks": CoClicks,
    "popularity, live decay": lambda data: LivePopularity(DATA, window=10 * DAY, half_life=DAY),
    "transitions, live": lambda data: Transitions(DATA, half_life=3 * DAY, live=True),
    "co-clicks, live": lambda data: CoClicks(DATA, live=True),
}
LEARNERS = [f"MML {name} + generator" for name in ("id", "image", "text")]


def test_it_is_made_of_learners_and_counts(live: Ensemble) -> None:
    assert list(live.members()) == [*LEARNERS, *BY_HAND]
    assert live.information == "live" and not live.weights.weight[0].eq(0).any()
    assert live.catalog is UP.catalog and live.warm is UP.warm and live.repeat_share == UP.known_repeat_share


@pytest.mark.parametrize("name", BY_HAND)
def test_a_part_is_the_one_built_by_hand(live: Ensemble, name: str) -> None:
    batch = next(EpisodeSampler(DOWN, part="test", users_per_batch=24).epoch(0))
    by_hand = as_model(BY_HAND[name](UP))
    with torch.no_grad():
        found, expected = (model.adapt(batch.support)(batch.query) for model in (live.members()[name], by_hand))
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.item_mask[1:], expected.item_mask[1:]) and found.scores.std() > 0


def test_epochs_that_nobody_gives_are_ten() -> None:
    (component,) = of_groups("sum")
    (found,) = component.fit(Setup(UP, QUICK)).values()
    expected = summed(UP, epochs=10)
    assert all(torch.equal(one, two) for one, two in zip(found.parameters(), expected.parameters(), strict=True))  # type: ignore[attr-defined]
    assert signature(mml_blend).parameters["sasrec_epochs"].default == Setup(UP).sasrec_epochs


def test_the_weights_are_those_fitted_by_hand(live: Ensemble) -> None:
    earlier, later = split_by_time(UP, at=split_time(UP, cold_users=0.2))
    model = trained(earlier)
    clicked = torch.from_numpy(UP.warm)  # what nobody clicked upstream is no candidate
    steps = select_inner_steps(model, later, clicks=5, items=clicked)
    methods = with_inner_steps(model, steps).methods()
    parts: dict[str, Method] = {name: methods[name.removeprefix("MML ")] for name in LEARNERS}
    parts |= {name: make(earlier) for name, make in BY_HAND.items()}
    weights = ContextWeights(list(parts))
    clicks = last_clicks(later, 5)
    assert UP.repeat_share > 0.02  # so what was clicked is a candidate
    seen = candidate_scores(parts, torch.from_numpy(earlier.warm), clicks, items=clicked, exclude_seen=False)
    weights.fit(seen, penalty=1e-3, top=0.4, iterations=40)
    for name in ("weight", "unknown", "usual"):
        torch.testing.assert_close(getattr(live.weights, name), getattr(weights, name), atol=1e-5, rtol=1e-4)
    whole = with_inner_steps(trained(UP), steps).methods()
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=24).epoch(0))
    for name in LEARNERS:
        expected = as_model(whole[name.removeprefix("MML ")]).adapt(batch.support)(batch.query).scores
        torch.testing.assert_close(live.members()[name].adapt(batch.support)(batch.query).scores, expected)


def test_without_live_counts_it_reads_nothing_after_the_split() -> None:
    torch.manual_seed(1)
    first = mml_blend(UP, QUICK, sasrec_epochs=1)
    torch.manual_seed(2)  # the seed is an argument, not the state of the moment
    second = mml_blend(UP, QUICK, sasrec_epochs=1)
    assert first.information == "upstream" and first.fitted_until == UP.time.max() < DOWN.time.min()
    one, two = (evaluate(method, DOWN, k=(5,)) for method in (first, second))
    assert np.array_equal(one.rank, two.rank)


def test_items_without_features_are_blended_too() -> None:
    bare = replace(UP, catalog=replace(UP.catalog, modalities={}))
    found = mml_blend(bare, QUICK, day=DAY, sasrec_epochs=1)
    assert list(found.members())[:2] == ["MML id", "SASRec id"]


def test_it_learns_a_planted_world() -> None:
    better = MMLConfig(dim=16, layers=1, lr=5e-3, users_per_batch=32, warmup_epochs=4, epochs=4, fusion_epochs=1)
    data = planted(users=300, items=40, adaptation=0.0)
    up, down = split_by_time(data, at=PLANTED_SPLIT)
    found = mml_blend(up, better, day=DAY, sasrec_epochs=6)
    ours, floor = (evaluate(method, down, k=(5,)).metrics["recall@5"] for method in (found, Popularity(up)))
    assert ours.mean > floor.mean + 3 * (ours.se + floor.se)
