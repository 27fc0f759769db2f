"""Events of several kinds in serving: what is served is what is evaluated, saved, observed, told over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import metarec as mr
from kind_worlds import random_kinds
from metarec import Recommender
from metarec.data import EpisodeSampler
from metarec.data.kinds import every_event
from metarec.export import Scoring
from metarec.functional.kinds import items_of, kinds_of
from metarec.io import load, save
from metarec.meta import MetaLearner
from metarec.recipes import MML, CoClicks, Ensemble, LivePopularity, MMLConfig, Popularity, sasrec
from metarec.service import create_app

DATA = random_kinds()
UP, DOWN = mr.split_by_time(DATA, mr.split_time(DATA))
KINDS = DATA.catalog.kinds


def _learner(seed: int = 0) -> mr.ModalityLearner:
    learner = sasrec.build(UP, dim=8, dropout=0.0, seed=seed)
    assert learner.kinds is not None
    with torch.no_grad():
        for weight in learner.parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return learner.eval()


def _model(kind: str) -> Any:
    if kind == "MML":
        return MML.build(UP, MMLConfig(dim=8)).eval()
    if kind == "ensemble":
        return Ensemble({"learner": _learner(), "counts": CoClicks(UP), "popularity": Popularity(UP)}, UP)
    return _learner() if kind == "learner" else MetaLearner(_learner(), lr=0.1, steps=2, adapts=kind)  # type: ignore[arg-type]


MODELS = ("learner", "encoder", "all", "MML", "ensemble")


def _told(user: int) -> tuple[list[str], list[str]]:
    """The events of a downstream user before the last click."""
    users, codes, _ = every_event(DOWN)
    own = codes[users == user]
    own = own[: np.flatnonzero(kinds_of(own) == 0)[-1]]
    return DATA.catalog.items.decode(items_of(own).tolist()), [KINDS[kind] for kind in kinds_of(own).tolist()]


@pytest.mark.parametrize("kind", MODELS)
def test_served_is_evaluated(kind: str) -> None:
    model = _model(kind)
    batch = next(EpisodeSampler(DOWN, part="serving", negatives=model.negatives).epoch(0))
    with torch.no_grad():
        state = model.encode(batch.support, batch.query)
        expected = model.scores(state).approximate(0, DATA.catalog.size)
    events = [_told(user) for user in batch.user.tolist()]
    recommender = Recommender(model)
    users = recommender.adapt([items for items, _ in events], kinds=[kinds for _, kinds in events])
    mask = model.item_mask()
    for row, (user, (items, kinds)) in enumerate(zip(users, events, strict=True)):
        assert torch.allclose(user.scores[mask], expected[row, mask], atol=1e-4)
        one = recommender.adapt(items, kinds=kinds)
        assert torch.allclose(one.scores[mask], expected[row, mask], atol=1e-4) and list(one.history) == items
    assert any(set(kinds) > {"buy"} for _, kinds in events)


@pytest.mark.parametrize("kind", MODELS)
def test_files_keep_models_and_users_of_several_kinds(kind: str, tmp_path: Path) -> None:
    recommender, (items, kinds) = Recommender(_model(kind)), _told(int(DOWN.user_codes[0]))
    user = recommender.adapt(items, kinds=kinds)
    save(recommender.model, tmp_path / "model")
    again = Recommender(load(tmp_path / "model"))
    assert again.catalog.kinds == KINDS
    assert again.adapt(items, kinds=kinds).recommend(k=5) == user.recommend(k=5)
    user.save(tmp_path / "user")
    read = again.load_users(tmp_path / "user")[0]
    assert read.recommend(k=5) == user.recommend(k=5) and read.history == user.history


def test_a_model_with_vectors_of_other_kinds_than_its_catalogue_is_not_saved(tmp_path: Path) -> None:
    learner = _learner()
    learner.catalog = replace(DATA.catalog, kinds=("buy", "view"))
    with pytest.raises(ValueError, match="kinds"):
        save(learner, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_clicks_alone_are_events_of_the_target_kind() -> None:
    recommender = Recommender(_learner())
    plain, told = recommender.adapt(["item3", "item5"]), recommender.adapt(["item3", "item5"], kinds=["buy", "buy"])
    assert plain.recommend(k=5) == told.recommend(k=5)
    mixed = recommender.adapt([["item3"], ["item5"]], kinds=[None, ["view"]])
    assert mixed[0].recommend(k=3) == recommender.adapt(["item3"]).recommend(k=3)


def test_who_has_only_viewed_gets_a_list_of_their_own() -> None:
    for kind in MODELS:
        recommender = Recommender(_model(kind))
        viewed, nobody = recommender.adapt(["item3", "item4"], kinds=["view", "cart"]), recommender.adapt([])
        assert not viewed.adapted and not torch.allclose(viewed.scores, nobody.scores, atol=1e-3), kind
    counts = Recommender(CoClicks(UP))  # reads clicks alone: a user without any
    assert counts.adapt(["item3"], kinds=["view"]).recommend(k=3) == counts.adapt([]).recommend(k=3)


def test_what_was_viewed_is_recommended_and_what_was_bought_is_not() -> None:
    user = Recommender(_learner()).adapt(["item3", "item4"], kinds=["view", "buy"])
    listed = {one.id for one in user.recommend(k=35, exclude_seen=True)}
    assert "item3" in listed and "item4" not in listed


@pytest.mark.parametrize(
    ("kinds", "named"),
    [(["vieww"], "vieww.*'buy', 'cart', 'view'"), (["view", "buy"], "1 events, got 2"), ([3], "3"), ([], "got 0")],
)
def test_wrong_kinds_are_named(kinds: list[Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Recommender(_learner()).adapt(["item3"], kinds=kinds)


def test_a_model_of_clicks_alone_takes_no_kinds() -> None:
    plain = replace(UP, others=None, catalog=replace(UP.catalog, kinds=()))
    with pytest.raises(ValueError, match="kind="):
        Recommender(sasrec.build(plain, dim=8)).adapt(["item3"], kinds=["view"])


def test_observed_and_later_events_are_those_of_a_whole_history() -> None:
    recommender = Recommender(_learner())
    columns = {"user": ["q"] * 3, "item": ["item1", "item2", "item3"], "kind": ["view", "buy", "cart"]}
    seen = recommender.observe({**columns, "time": [9e9, 9e9 + 1, 9e9 + 2]})
    whole = recommender.adapt(columns["item"], kinds=columns["kind"])
    assert (seen.clicks, seen.new_users) == (3, ("q",))
    assert recommender.user("q").recommend(k=5) == whole.recommend(k=5)
    part = recommender.adapt(columns["item"][:1], kinds=["view"]).update(columns["item"][1:], kinds=["buy", "cart"])
    assert part.recommend(k=5) == whole.recommend(k=5)
    with pytest.raises(ValueError, match="'wish'"):
        recommender.observe({"user": ["q"], "item": ["item1"], "time": [9e9 + 5], "kind": ["wish"]})


def test_observed_views_move_no_count() -> None:
    columns = {"user": ["q"] * 2, "item": ["item1", "item1"], "time": [9e9, 9e9 + 1]}
    own, bought = (Recommender(LivePopularity(UP, window=1e12)) for _ in range(2))
    before = own.adapt(["item3"]).scores
    own.observe({**columns, "kind": ["view", "cart"]})
    bought.observe(columns)
    assert torch.equal(own.adapt(["item3"]).scores, before)
    assert not torch.equal(bought.adapt(["item3"]).scores, before)


def test_reasons_leave_out_all_events_on_an_item() -> None:
    recommender = Recommender(_learner())
    items, kinds = ["item3", "item5", "item3", "item7"], ["view", "buy", "buy", "cart"]
    whole, without = (recommender.adapt(a, kinds=b) for a, b in ((items, kinds), (["item5", "item7"], ["buy", "cart"])))
    reasons = {reason.id: reason.effect for reason in whole.because("item9", k=3)}
    assert set(reasons) == {"item3", "item5", "item7"}
    code, mask = int(DATA.catalog.items.encode(["item9"])[0]), recommender.model.item_mask()
    places = [(u.scores[code] - u.scores[mask].mean()) / u.scores[mask].std(correction=0) for u in (whole, without)]
    assert reasons["item3"] == pytest.approx(float(places[0] - places[1]), abs=1e-3)


def test_the_service_takes_kinds() -> None:
    recommender = Recommender(_learner())
    body: dict[str, Any] = {"clicks": ["item3", "item5"], "kinds": ["view", "buy"], "k": 3}
    with TestClient(create_app(recommender, allow_changes=True)) as client:
        found = client.post("/recommend", json=body).json()["items"]
        expected = recommender.adapt(body["clicks"], kinds=body["kinds"]).recommend(k=3)
        assert [one["id"] for one in found] == [one.id for one in expected]
        for wrong in (["view"], ["view", "wish"]):
            answer = client.post("/recommend", json={**body, "kinds": wrong})
            assert answer.status_code == 422 and "kind" in answer.json()["error"]
        told = [{"user": "q", "item": "item3", "time": 9e9, "kind": "view"}]
        told.append({"user": "q", "item": "item5", "time": 9e9 + 1, "kind": "buy"})
        assert client.post("/clicks", json={"clicks": told}).json()["clicks"] == 2
        named = client.post("/recommend", json={"user": "q", "k": 3}).json()["items"]
        assert [one["id"] for one in named] == [one["id"] for one in found]
        wrong_kind = {"clicks": [{**told[0], "time": 9e9 + 3, "kind": "wish"}]}
        assert client.post("/clicks", json=wrong_kind).status_code == 422


def test_what_reads_kinds_cannot_be_exported() -> None:
    with pytest.raises(TypeError, match="kinds"):
        Scoring(_learner())
