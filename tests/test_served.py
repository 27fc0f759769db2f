"""Any method behind a Recommender, against its own scores of the same clicks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarec import Recommender, as_model
from metarec.data import Dataset, EpisodeSampler, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import EASE, LivePopularity, MMLConfig, Popularity, mml_blend
from metarec.types import Method

DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
QUICK = MMLConfig(
    dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=1, objectives=("softmax", "softmax")
)


@pytest.fixture(scope="module")
def blend() -> Method:
    return mml_blend(UP, QUICK, sasrec_epochs=1)


def histories(down: Dataset) -> list[list[str]]:
    """All clicks of each user but the last one."""
    return [down.catalog.items.decode(down.item[down.user == user][:-1]) for user in down.user_codes]


def test_a_blend_is_served_as_it_scores(blend: Method) -> None:
    lists = Recommender(as_model(blend, UP)).adapt(histories(DOWN)).recommend(k=10, exclude_seen=True)
    batch = next(EpisodeSampler(DOWN, part="serving", users_per_batch=len(DOWN.user_codes)).epoch(0))
    with torch.no_grad():
        query = batch.query
        query = type(query)(query.history, query.position, query.target, query.negatives, query.weight)  # no clock
        scores = blend.adapt(batch.support)(query).scores[:, 0]
    assert len(lists) == len(batch) == 24
    by_user = dict(zip(DOWN.user_codes.tolist(), lists, strict=True))
    for user, row in zip(batch.user.tolist(), scores, strict=True):
        own, found = row.clone(), by_user[user]
        own[0] = own[DOWN.item[DOWN.user == user][:-1]] = -torch.inf
        expected = own.topk(10).values
        np.testing.assert_allclose([item.score for item in found], expected, rtol=1e-4, atol=1e-5)
        codes = DOWN.catalog.items.encode([item.id for item in found])
        np.testing.assert_allclose(own[torch.from_numpy(codes)], expected, rtol=1e-4, atol=1e-5)


def test_ranks_are_those_of_the_evaluation() -> None:
    method = EASE(UP)
    report = evaluate(method, DOWN, part="serving")
    users = Recommender(as_model(method, UP)).adapt(histories(DOWN))
    ranked = users.recommend(k=20, exclude_seen=False)
    ties = 0
    for user, target, rank in zip(ranked, report.target, report.rank, strict=True):
        ids = [item.id for item in user]
        if rank != int(rank):
            ties += 1
        elif rank <= 20:
            assert ids[int(rank) - 1] == DOWN.catalog.items.decode(np.array([target]))[0]
    assert ties < len(report) / 2


def test_a_user_without_clicks_gets_what_is_popular() -> None:
    counts = np.bincount(UP.item, minlength=UP.catalog.size)
    found = Recommender(as_model(Popularity(UP), UP)).adapt([]).recommend(k=3)
    assert [counts[UP.catalog.items.encode([item.id])[0]] for item in found] == sorted(counts, reverse=True)[:3]


def test_live_counts_are_those_of_the_last_click() -> None:
    window = 30.0
    method = LivePopularity(DATA, window=window)
    recent = DATA.item[DATA.time >= DATA.time.max() + 1 - window]
    counts = np.bincount(recent, minlength=DATA.catalog.size)
    (clicked,) = DATA.catalog.items.decode(np.array([1]))
    found = Recommender(as_model(method, UP)).adapt([clicked]).recommend(k=5, exclude_seen=True)
    counts[1] = -1
    assert [counts[DATA.catalog.items.encode([item.id])[0]] for item in found] == sorted(counts, reverse=True)[:5]
