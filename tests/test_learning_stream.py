"""Learning on over a stream: what it costs does not grow with the clicks that came, and weights are fitted in time."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from metarec import Dataset, Model, Vocabulary
from metarec.data import split_by_time
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.functional.histories import leaves_out_seen
from metarec.learning import Learning
from metarec.recipes import Ensemble, LivePopularity, Popularity, Transitions, learning_on, sasrec
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.ensemble_form import choose_form
from metarec.recipes.nested_validation import last_clicks, validation_split
from metarec.streaming import counted, evaluate_stream, fit_by_prequential_validation, learned, prequential_scores

DATA = planted(users=400, items=40, noise=0.3)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
DAY = 86_400 * DATA.second


def learner(data: Dataset = UP) -> Any:
    made = sasrec.build(data, ("id", "text"), dim=8, layers=1)
    for _ in sasrec.train(made, data, epochs=1):
        pass
    return made


def renamed(data: Dataset) -> Dataset:
    """The same clicks, with the users in a vocabulary of their own and in another order."""
    order = np.argsort(-data.user, kind="stable")
    users = Vocabulary([data.users.ids[code - 1] for code in range(len(data.users), 0, -1)], "user")
    columns = {"user": len(data.users) + 1 - data.user[order], "item": data.item[order], "time": data.time[order]}
    return replace(data, users=users, **columns)


@pytest.mark.parametrize("how", [Learning(), Learning(replay_users=0), Learning(replay_users=9), Learning(replay=0)])
@pytest.mark.parametrize("same_users", [True, False])
def test_clicks_out_of_reach_are_left_out_and_change_nothing(
    how: Learning, same_users: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = np.quantile(DATA.time, [0.9, 0.95])
    new = filter_interactions(DATA, (DATA.time >= begin) & (DATA.time < end))
    before = filter_interactions(DATA, DATA.time < begin)
    before = before if same_users else renamed(before)
    found = learning_on.Batches(learner(), new, before, how)
    left_out: list[int] = []
    monkeypatch.setattr(learning_on, "within_reach", lambda before, *_: left_out.append(0) or before)
    wanted = learning_on.Batches(learner(), new, before, how)
    assert left_out and found.since == wanted.since
    for one, other in ((found.data, wanted.data), (found.held.data, wanted.held.data)):
        assert [one.users.ids[code - 1] for code in one.user] == [other.users.ids[code - 1] for code in other.user]
        assert np.array_equal(one.item, other.item) and np.array_equal(one.time, other.time)


def test_a_hundred_days_leave_nothing_of_the_days_before() -> None:
    model = Ensemble({"live": LivePopularity(UP, window=20 * DAY), "sasrec": learner()}, UP)
    kept = list[weakref.ref[Model]]()
    held = list[int]()

    def after(period: int, now: Model) -> None:
        gc.collect()
        kept.extend(weakref.ref(part) for part in now.members().values())
        held.append(len({id(part) for one in kept if (part := one()) is not None}))

    every = (float(DATA.time.max()) - PLANTED_SPLIT) / 100
    evaluate_stream(
        model, DATA, start=PLANTED_SPLIT, step=learned(Learning(epochs=1, held_out=0)), every=every, after=after
    )
    assert len(held) >= 100 and max(held) <= 6 < len(kept) / 30  # only the parts of the day


def parts(data: Dataset) -> dict[str, Any]:
    return {"all": Popularity(data), "live": LivePopularity(data, window=20 * DAY), "sasrec": learner(data)}


def test_frozen_parts_say_in_a_stream_what_they_say_at_once() -> None:
    earlier, later = validation_split(UP)
    model = Ensemble({"all": Popularity(earlier), "sasrec": learner(earlier)}, earlier)
    found = prequential_scores(model, UP, start=float(earlier.time.max()), step=lambda model, *_: model)
    clicked, warm = torch.from_numpy(UP.warm), torch.from_numpy(earlier.warm)
    leaves_out = leaves_out_seen(UP.known_repeat_share)
    with torch.no_grad():
        wanted = candidate_scores(
            model.members(), warm, last_clicks(later, 3), items=clicked, most=512, exclude_seen=leaves_out
        )
    own = set(later.user_codes.tolist())  # whom a split leaves out are asked about in a stream
    said = (
        sorted(zip(s.user.tolist(), s.target.tolist(), s.z[:, 1, 5].tolist(), strict=True)) for s in (found, wanted)
    )
    rows = [[row for row in every if row[0] in own] for every in said]
    assert len(rows[0]) > 30 and np.allclose(rows[0], rows[1], atol=1e-5) and found.names == wanted.names
    assert found.until == max(later.time)


def test_parts_are_asked_before_they_are_told() -> None:
    """The clock: what comes after a moment is another world, and all that was said before it stays."""
    earlier, _ = validation_split(UP)
    start = float(earlier.time.max())
    moment = start + (UP.time.max() - start) / 2
    rng = np.random.default_rng(0)
    other = replace(UP, item=np.where(UP.time >= moment, rng.permutation(UP.item), UP.item))
    model = Ensemble(parts(earlier), earlier)
    one, two = (prequential_scores(model, data, start=start, every=5 * DAY, observe_every=DAY) for data in (UP, other))
    last = np.array([UP.time[UP.user == user].max() for user in one.user.tolist()])
    early = torch.from_numpy(last < moment)
    assert 10 < early.sum() < len(early)
    assert torch.equal(one.z[early], two.z[early]) and not torch.equal(one.z[~early], two.z[~early])


def test_weights_are_those_of_the_stream_inside_upstream() -> None:
    made: list[Dataset] = []

    def make(data: Dataset) -> dict[str, Any]:
        made.append(data)
        return {"all": Popularity(data), "live": LivePopularity(data, window=20 * DAY), "next": Transitions(data)}

    found = fit_by_prequential_validation(make, UP, step=counted, every=DAY)
    earlier, _ = validation_split(UP)
    assert [len(data) for data in made] == [len(earlier), len(UP)]
    model = Ensemble(make(earlier), earlier)
    seen = prequential_scores(model, UP, start=float(earlier.time.max()), step=counted, every=DAY)
    wanted = choose_form(seen).weights
    assert found.weights.names == wanted.names and torch.equal(found.weights.weight, wanted.weight)
    assert found.fitted_until == UP.time.max()
    with pytest.raises(ValueError, match=str(int(UP.time.max()))):
        prequential_scores(model, UP, start=float(UP.time.max()))
