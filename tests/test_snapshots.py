"""What a recommender keeps of a model: against a recommender made anew, and against parts asked one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from count_worlds import LIVE, asked, every_score, world
from metarec.data import split_by_time
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import EASE, MML, CoClicks, Ensemble, LivePopularity, MMLConfig, Popularity, Transitions, sasrec
from metarec.recipes.sparse_scores import SparseScores, SparseStack
from metarec.recommender import Recommender

WORLD = planted(users=60, items=40)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)
HISTORIES = [["item3", "item7"], ["item1"], ["item9", "item2", "item30", "item4"], ["item11", "item12", "item13"]] * 3


def ensemble(data: Any = WORLD, *, steps: int = 0) -> Ensemble:
    torch.manual_seed(0)
    model = MML.build(UP, MMLConfig(dim=8, layers=1, test_steps=steps, test_lr=0.1)).eval()
    parts: dict[str, Any] = {f"MML {name}": model.meta(name) for name in model.learners}
    parts |= {"sum": sasrec.build(UP, ("id", "text"), dim=8).eval(), "ease": EASE(UP), "popularity": Popularity(UP)}
    parts |= {"live": LivePopularity(data, window=1e9), "transitions": Transitions(data, live=True)}
    return Ensemble({**parts, "co-clicks": CoClicks(UP)}, UP).eval()


def numbers(recommender: Recommender) -> torch.Tensor:
    return torch.stack([user.scores for user in recommender.adapt(HISTORIES)])


def test_weights_that_change_within_a_request_change_nothing_in_it() -> None:
    model = ensemble()
    recommender = Recommender(model)
    users, state = recommender.adapt(HISTORIES), recommender._states.current()
    before = state.scores(users.state).approximate(0, 41)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(state.scores(users.state).approximate(0, 41), before)
    with pytest.raises(ValueError, match="adapt to them again"):
        users.recommend(k=3)
    assert torch.equal(numbers(recommender), numbers(Recommender(model)))
    assert not torch.allclose(numbers(recommender), before)


def test_a_buffer_that_changes_is_noticed_and_users_stay() -> None:
    model = ensemble()
    recommender = Recommender(model)
    users = recommender.adapt(HISTORIES)
    before = numbers(recommender)
    model.weights.usual.add_(1)
    model.parts[0].learner.items.known[5] = False
    after = torch.stack([user.scores for user in users])
    assert torch.equal(after, numbers(Recommender(model))) and not torch.equal(after, before)


def test_clicks_that_the_model_is_told_of_directly_are_noticed() -> None:
    at = float(np.quantile(WORLD.time, 0.9))
    early, late = (filter_interactions(WORLD, rows) for rows in (WORLD.time <= at, WORLD.time > at))
    model = ensemble(early)
    recommender = Recommender(model)
    users = recommender.adapt(HISTORIES)
    before = users.recommend(k=5)
    model.observe(late)
    found, anew = users.recommend(k=5), Recommender(ensemble()).adapt(HISTORIES).recommend(k=5)
    np.testing.assert_allclose(found.scores, anew.scores, atol=1e-5)
    assert np.array_equal(found.codes, anew.codes) and not np.allclose(found.scores, before.scores)


@pytest.mark.parametrize("steps", [0, 2])
def test_few_and_many_users_are_encoded_alike(steps: int) -> None:
    recommender = Recommender(ensemble(steps=steps))
    one_by_one = torch.stack([recommender.adapt(history).scores for history in HISTORIES])
    few = torch.cat([torch.stack([u.scores for u in recommender.adapt(HISTORIES[a : a + 4])]) for a in (0, 4, 8)])
    torch.testing.assert_close(few, one_by_one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(numbers(recommender), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [slice(0, 24), slice(3, 9), slice(5, 6), slice(4, 4)])
def test_a_stack_is_the_weighted_sum_of_its_models(part: slice) -> None:
    models = [make(world(1)) for make in LIVE.values()]
    query = asked(1, time=None)
    each = [(m, m.scores(m.encode(query, query))) for m in models]
    some = [(m, own) for m, own in each if isinstance(own, SparseScores)]
    scale = torch.randn(24, len(some), generator=torch.Generator().manual_seed(0)).double()
    stack = SparseStack.of([own for _, own in some])[part]
    expected = torch.zeros(24, 31, dtype=torch.float64)
    for place, (model, own) in enumerate(some):
        above = torch.where(model.item_mask(), every_score(model, query) - own.base, 0)
        expected += scale[:, place, None] * above
    codes = torch.arange(31).expand(len(expected[part]), -1)
    torch.testing.assert_close(stack.exact(codes, scale[part]), expected[part])
    for first, last in ((0, 31), (4, 17)):
        out = torch.zeros(len(codes), last - first)
        stack.add_to(out, first, scale[part])
        torch.testing.assert_close(out.double(), expected[part, first:last], atol=1e-5, rtol=1e-5)
    mean, deviation = stack.moments()
    for place, (_, own) in enumerate(some):
        torch.testing.assert_close(mean[:, place], own.moments()[0][part])
        torch.testing.assert_close(deviation[:, place], own.moments()[1][part])
