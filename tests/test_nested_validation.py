"""Nested temporal validation against the same written out."""

import numpy as np
import torch

from metarec.data import split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import EASE, Popularity, fit_by_nested_validation
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.nested_validation import last_clicks, validation_split


def test_weights_are_fitted_on_the_later_upstream_users_and_nothing_else_is_read() -> None:
    up, down = split_by_time(planted(users=120, items=40, adaptation=0.0), at=PLANTED_SPLIT)
    asked = []

    def make(data: object) -> dict[str, object]:
        asked.append(data)
        return {"popularity": Popularity(data), "ease": EASE(data, penalty=5.0)}  # type: ignore[arg-type]

    found = fit_by_nested_validation(up, make, clicks=2)  # type: ignore[arg-type]
    earlier, later = split_by_time(up, at=split_time(up, cold_users=0.2))
    by_hand, models = ContextWeights(["popularity", "ease"]), make(earlier)
    assert up.repeat_share > 0.1  # so what was clicked before is a candidate, and may be the answer
    warm = torch.from_numpy(earlier.warm)
    clicks, clicked = list(last_clicks(later, 2)), torch.from_numpy(up.warm)
    assert not bool(clicked[1:].all())  # and what nobody clicked upstream is none
    by_hand.fit(candidate_scores(models, warm, clicks, items=clicked, exclude_seen=False))  # type: ignore[arg-type]
    assert torch.equal(found.weights.weight, by_hand.weight)
    assert [len(data) for data in asked] == [len(earlier), len(up), len(earlier)]  # type: ignore[arg-type]
    assert found.fitted_until == up.time.max() < down.time.min()
    better = evaluate(found, down, k=(4,)).metrics["ndcg@4"].mean
    assert better > evaluate(Popularity(up), down, k=(4,)).metrics["ndcg@4"].mean


def test_of_many_later_users_some_are_drawn() -> None:
    up, _ = split_by_time(planted(users=300, items=40), at=PLANTED_SPLIT)
    earlier, later = validation_split(up)
    some = validation_split(up, most=10)
    assert len(later.user_codes) > 10 == len(some[1].user_codes) and len(some[0]) == len(earlier)
    for user in some[1].user_codes:  # with all of their clicks
        assert some[1].item[some[1].user == user].tolist() == later.item[later.user == user].tolist()
    spread = np.searchsorted(later.user_codes, some[1].user_codes)
    assert spread.max() > len(later.user_codes) / 2 > spread.min()


def test_last_clicks_are_asked_for_one_after_the_other() -> None:
    data = planted(users=40, items=30)
    found = set()
    for batch in last_clicks(data, 3, users_per_batch=7):
        for row, user in enumerate(batch.user.tolist()):
            known = batch.query.history[row, : int(batch.query.position[row, 0]) + 1].tolist()
            found.add((user, tuple(known), int(batch.query.target[row, 0])))
    expected = set()
    for user in data.user_codes.tolist():
        own = data.item[data.user == user].tolist()
        expected |= {(user, tuple(own[:at]), own[at]) for at in range(len(own) - 3, len(own)) if at >= 3}
    assert found == expected
