"""Ensembles of real parts against the formula over each part's own scores, and against counts made anew."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Dataset
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import EASE, MML, CoClicks, Ensemble, LivePopularity, MMLConfig, Popularity, Transitions, sasrec
from metarec.recipes.components import Setup, of_groups
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.user_context import user_context
from metarec.scoring import UserState
from metarec.types import EpisodeBatch, Examples
from score_tables import ITEMS, SIZE, random_weights, scored

WORLD = planted(users=60, items=ITEMS)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)


def by_hand(parts: dict[str, Any], weights: ContextWeights, batch: EpisodeBatch) -> Tensor:
    """(N, I) float64 from each part's own scores and the formula; N = B * Q."""
    weight, unknown = weights(user_context(batch.query, torch.from_numpy(UP.warm)).flatten(0, 1))
    total = torch.zeros(batch.query.target.numel(), SIZE, dtype=torch.float64)
    for s, part in enumerate(parts.values()):
        own = part.adapt(batch.support)(batch.query)
        raw, known = own.scores.flatten(0, 1).double(), own.item_mask
        z = (raw - raw[:, known].mean(1, keepdim=True)) / raw[:, known].std(1, correction=0, keepdim=True)
        total += torch.where(known, weight[:, s, None] * z, unknown[:, s, None])
    return total.detach()


def learners() -> dict[str, Any]:
    """Meta-learners of MML that take steps, one of another width, and plain ones."""
    model = MML.build(UP, MMLConfig(dim=8, layers=1, test_steps=2, test_lr=0.1)).eval()
    metas = {f"MML {name}": model.meta(name) for name in model.learners}
    return {**metas, "sum": sasrec.build(UP, ("id", "text"), dim=8).eval(), "wide": sasrec.build(UP, dim=12).eval()}


@pytest.mark.parametrize("users_at_once", [1, 5])
def test_stacked_learners_score_as_each_by_itself(users_at_once: int) -> None:
    parts = {**learners(), "ease": EASE(UP), "popularity": Popularity(UP)}
    model = Ensemble(parts, UP, weights=random_weights(tuple(parts)))
    for part in ("serving", "test"):
        batch = next(EpisodeSampler(DOWN, part=part, users_per_batch=users_at_once).epoch(0))
        whole = scored(model, batch)
        expected = by_hand(parts, model.weights, batch)
        torch.testing.assert_close(whole.approximate(0, SIZE)[:, 1:].double(), expected[:, 1:], atol=2e-5, rtol=1e-5)
        codes = torch.arange(SIZE).expand(len(whole), -1)
        gap = (whole.approximate(0, SIZE).double() - whole.exact(codes)).abs()[:, 1:].amax(1)
        assert bool((gap <= whole.error()).all())
        mean, deviation = whole.moments()
        torch.testing.assert_close(mean, expected[:, 1:].mean(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(deviation, expected[:, 1:].std(1, correction=0), atol=1e-5, rtol=1e-5)


def test_a_change_of_weights_is_noticed_and_states_can_be_put_together() -> None:
    parts = learners()
    model = Ensemble(parts, UP)
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=5).epoch(0))
    state = model.encode(batch.support, batch.query)
    joined = UserState.join([state[:2], state[2:]])
    before = model.scores(state).approximate(0, SIZE)
    assert torch.equal(model.scores(joined).approximate(0, SIZE), before)
    with torch.no_grad():
        parts["sum"].encoder.norm.bias.add_(0.5)
    torch.testing.assert_close(
        scored(model, batch).approximate(0, SIZE)[:, 1:].double(),
        by_hand(parts, model.weights, batch)[:, 1:],
        atol=2e-5,
        rtol=1e-5,
    )
    assert not torch.allclose(scored(model, batch).approximate(0, SIZE), before)


def test_kept_weights_are_gone_on_from() -> None:
    metas = {name: part for name, part in learners().items() if name.startswith("MML")}
    model = Ensemble({**metas, "popularity": Popularity(UP)}, UP)
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=5).epoch(0))
    first = model.encode(batch.support, batch.query, keep_weights=True)
    second = model.encode(batch.support, batch.query, start=first)
    for part in metas.values():
        alone = part.encode(
            batch.support, batch.query, start=part.encode(batch.support, batch.query, keep_weights=True)
        )
        place = list(metas.values()).index(part)
        stacked = second.part("/".join(metas)).tensors["state"][:, place]
        torch.testing.assert_close(stacked, alone.tensors["state"][:, 0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="keep_weights"):
        Ensemble({"popularity": Popularity(UP)}, UP).encode(batch.support, batch.query, keep_weights=True)


def test_a_user_without_history_of_real_parts() -> None:
    model = Ensemble({**learners(), "ease": EASE(UP), "live": LivePopularity(UP, window=1e5)}, UP)
    state = model.encode_empty()
    assert len(state) == 1 and model.scores(state).approximate(0, SIZE).isfinite().all()
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=5).epoch(0))
    both = UserState.join([model.encode(batch.support, batch.query), state])
    torch.testing.assert_close(
        model.scores(both).approximate(0, SIZE)[5:], model.scores(state).approximate(0, SIZE), atol=1e-5, rtol=1e-5
    )


def live(data: Dataset) -> Ensemble:
    return Ensemble(
        {
            "popularity": LivePopularity(data, window=1e5, half_life=1e4),
            "transitions": Transitions(data, half_life=3e4, live=True),
            "co-clicks": CoClicks(data, live=True),
            "ease": EASE(UP),
        },
        UP,
    )


def test_live_counts_that_observe_are_those_counted_anew() -> None:
    at = float(np.quantile(WORLD.time, 0.9))
    early, late = (filter_interactions(WORLD, rows) for rows in (WORLD.time <= at, WORLD.time > at))
    model, expected = live(early), live(WORLD)
    other = copy.copy(model)
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=5).epoch(0))
    now = EpisodeBatch(batch.user, batch.support, replace(batch.query, time=None))
    before = scored(model, now).approximate(0, SIZE)
    held = scored(model, now)
    model.observe(late)
    codes = torch.arange(SIZE).expand(5, -1)
    torch.testing.assert_close(
        scored(model, now).exact(codes), scored(expected, now).exact(codes), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(held.approximate(0, SIZE), before) and torch.equal(
        scored(other, now).approximate(0, SIZE), before
    )
    moved = scored(model, now).approximate(0, SIZE)
    assert not torch.allclose(moved, before)
    with pytest.raises(ValueError, match="part 'popularity'"):
        model.observe(early)
    assert torch.equal(scored(model, now).approximate(0, SIZE), moved)


def test_a_user_takes_at_most_four_kilobytes() -> None:
    """With the parts and sizes of the recipe, fifty clicks, live."""
    setup = Setup(UP, live=WORLD)
    parts = {name: part for c in of_groups("counts", "live") for name, part in c.fit(setup).items()}
    model = MML.build(UP, replace(setup.config, test_steps=0)).eval()
    parts |= {f"MML {name}": model.meta(name) for name in model.learners}
    parts["sum"] = sasrec.build(UP, setup.inputs, dim=setup.config.dim).eval()
    history = torch.arange(50).remainder(ITEMS).add(1).unsqueeze(0)
    none = torch.zeros(1, 1, dtype=torch.int64)
    query = Examples(history, none + 49, none, none.unsqueeze(2), torch.ones(1, 1))
    state = Ensemble(parts, UP).encode(query, query)
    assert len(state) == 1 and 1000 < state.nbytes <= 4096
