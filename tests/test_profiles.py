"""Profiles of users: read from frames and files, learned from, and what a user without clicks is shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr
from fit_worlds import shorten
from metarec.data import Dataset, EpisodeSampler, load_atomic
from metarec.data.attributes import Column, fit_encodings
from metarec.data.encodings import Categories, Numbers
from metarec.data.profiles import Profiles, profile_rows
from metarec.recipes import CoClicks, Ensemble, Popularity, ProfilePopularity, profile_popularity
from metarec.recipes.context_weights import ContextWeights
from service_helpers import ask, running

USERS = pl.DataFrame({"user_id": ["v", "w", "u", "z"], "sex": ["f", "m", "f", "m"], "age": [20.0, None, 40.0, 33.0]})
CLICKS = pl.DataFrame({"user_id": ["u", "u", "v", "x"], "item_id": ["b", "a", "d", "a"], "timestamp": [1, 2, 3, 4]})


def grouped(users: int = 240, items: int = 40, seed: int = 0) -> Dataset:
    """Old people click the first half of the items, young ones the other; both click some at random."""
    data = mr.datasets.planted(users=users, items=items, adaptation=0, noise=1)
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 80, data.users.size)
    own = 1 + rng.integers(0, items // 2, len(data)) + items // 2 * (age[data.user] < 50)
    item = np.where(rng.random(len(data)) < 0.8, own, rng.integers(1, items + 1, len(data)))
    columns = {
        "age": Column(age[1:].tolist(), numbers=True),
        "sex": Column(["fm"[n] for n in rng.integers(0, 2, data.users.size - 1)]),
    }
    encodings, made = fit_encodings(columns, "users")
    warm = np.ones(items + 1, dtype=bool)
    warm[0] = False
    return replace(data, item=item, warm=warm, profiles=Profiles(encodings, made.features), upstream_repeat_share=0.0)


UP, DOWN = mr.split_by_time(grouped(), at=mr.datasets.PLANTED_SPLIT)


def half(found: Any) -> float:
    """The share of a list that is of the first half of the items."""
    return float(np.mean([int(each.id.removeprefix("item")) < 20 for each in found]))


@pytest.fixture(scope="module")
def model() -> ProfilePopularity:
    return ProfilePopularity(UP)


def test_profiles_of_a_frame_stand_in_the_order_of_the_users() -> None:
    data = Dataset.from_frame(CLICKS, users=USERS, profile=["sex", "age"])
    assert data.users.ids == ("u", "v", "x") and data.profiles is not None
    features = data.profiles.features
    assert list(data.profiles.encodings) == ["sex", "age"]
    assert features[:, :3].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], "x has none, w and z no clicks"
    ages = torch.tensor(data.profiles.encodings["age"].knots)  # type: ignore[union-attr]
    assert (features[1:3, 3:-1] @ ages).tolist() == [40, 20]


def test_profiles_of_atomic_files_are_equal(tmp_path: Path) -> None:
    (tmp_path / "s.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu\tb\t1\nu\ta\t2\nv\td\t3\nx\ta\t4\n"
    )
    rows = "user_id:token\tsex:token\tage:float\nv\tf\t20\nw\tm\t\nu\tf\t40\nz\tm\t33\n"
    (tmp_path / "s.user").write_text(rows)
    atomic = load_atomic(tmp_path, profile=["sex", "age"]).profiles
    frame = Dataset.from_frame(CLICKS, users=USERS, profile=["sex", "age"]).profiles
    assert atomic is not None and frame is not None
    assert atomic.encodings == frame.encodings and torch.equal(atomic.features, frame.features)
    assert load_atomic(tmp_path).profiles is None
    with pytest.raises(ValueError, match=r"'zip'.*sex"):
        load_atomic(tmp_path, profile=["zip"])
    (tmp_path / "s.user").unlink()
    with pytest.raises(FileNotFoundError, match=r"s\.user"):
        load_atomic(tmp_path, profile=["sex"])


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"users": USERS}, ValueError, "profile="),
        ({"profile": ["sex"]}, ValueError, "users="),
        ({"users": USERS, "profile": "sex"}, TypeError, "'sex'"),
        ({"users": USERS, "profile": ["zip"]}, ValueError, "users.*'zip'"),
        ({"users": pl.concat([USERS, USERS]), "profile": ["sex"]}, ValueError, "users.*row 4.*'v'"),
        ({"users": USERS.with_columns(user_id=pl.Series([1, 2, 3, 4])), "profile": ["sex"]}, ValueError, "users"),
    ],
)
def test_what_makes_no_profiles_is_refused(given: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Dataset.from_frame(CLICKS, **given)


def test_profiles_must_fit_the_users() -> None:
    assert UP.profiles is not None
    with pytest.raises(ValueError, match=r"241.*3"):
        replace(UP, profiles=replace(UP.profiles, features=UP.profiles.features[:3]))
    with pytest.raises(ValueError, match="features"):
        replace(UP.profiles, features=UP.profiles.features[:, :2])


def test_every_user_that_is_sampled_comes_with_its_profile() -> None:
    assert UP.profiles is not None
    for batch in EpisodeSampler(UP, users_per_batch=50).epoch(0):
        assert batch.query.profile is not None
        assert torch.equal(batch.query.profile, UP.profiles.features[batch.user])
        one = next(batch.chunks(7)).query
        assert one.profile is not None and torch.equal(one.profile, batch.query.profile[:7])


def test_the_weights_are_at_the_optimum_of_the_penalised_likelihood(model: ProfilePopularity) -> None:
    """The gradient of a loss written click by click is nothing there."""
    assert UP.profiles is not None
    weight = model.weight[:, :-1].double().requires_grad_()
    profile, item = UP.profiles.features[torch.from_numpy(UP.user)].double(), torch.from_numpy(UP.item)
    count = np.bincount(UP.item, minlength=UP.catalog.size)
    assert model.weight[1:, -1].tolist() == pytest.approx([math.log(n + 0.5) for n in count[1:]], rel=1e-5)
    scores = profile @ weight.T + model.weight[:, -1].double()
    likely = scores[:, 1:].log_softmax(1).gather(1, item[:, None] - 1).sum()
    (gradient,) = torch.autograd.grad(10 * weight.square().sum() - likely, weight)
    (scale,) = torch.autograd.grad((profile @ weight.T).gather(1, item[:, None]).sum(), weight)
    assert float(gradient.abs().max()) < 0.01 * float(scale.abs().max())


def test_clicks_in_pieces_make_the_same_weights(model: ProfilePopularity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_popularity, "AT_ONCE", 400)
    assert torch.allclose(ProfilePopularity(UP).weight, model.weight, atol=1e-2)


def test_who_has_not_clicked_gets_a_list_of_their_own(model: ProfilePopularity) -> None:
    recommender = mr.Recommender(model)
    old, young = (recommender.adapt([], profile={"age": age}).recommend(k=10) for age in (70, 25))
    assert half(old) > 0.8 and half(young) < 0.2
    nobody = recommender.adapt([]).recommend(k=40)
    assert (
        nobody
        == recommender.adapt([], profile={}).recommend(k=40)
        == recommender.adapt([], profile={"sex": None}).recommend(k=40)
    )
    assert [each.id for each in nobody] == [
        each.id for each in mr.Recommender(Popularity(UP)).adapt([]).recommend(k=40)
    ]
    many = recommender.adapt([[], ["item3"], []], profile=[{"age": 70}, {"age": "25"}, None])
    assert half(many[0].recommend(k=10)) > 0.8 > 0.2 > half(many[1].recommend(k=10))
    assert many[0].recommend(k=10) == old and many[2].recommend(k=40) == nobody
    assert recommender.adapt([], profile={"age": 70, "sex": "never seen"}).recommend(k=3)


@pytest.mark.parametrize("profile", [{"colour": 1}, {"age": "old"}, [{"age": 3}, {"age": 4}], "age"])
def test_a_profile_that_cannot_be_read_is_refused(model: ProfilePopularity, profile: Any) -> None:
    with pytest.raises(ValueError, match="profile"):
        mr.Recommender(model).adapt([[]] if isinstance(profile, list) else [], profile=profile)
    with pytest.raises(ValueError, match="profile"):
        mr.Recommender(Popularity(UP)).adapt([], profile={"age": 3})


def test_a_profile_goes_on_counting_after_clicks(model: ProfilePopularity, tmp_path: Path) -> None:
    parts = {"popularity": Popularity(UP), "profile": model}
    recommender = mr.Recommender(Ensemble(parts, UP, weights=ContextWeights(list(parts))))
    old = recommender.adapt([], profile={"age": 70})
    later = old.update(["item3"]).update(["item30"])
    afresh = recommender.adapt(["item3", "item30"], profile={"age": 70})
    assert later.recommend(k=30) == afresh.recommend(k=30) != recommender.adapt(["item3", "item30"]).recommend(k=30)
    alone = mr.Recommender(model)
    alone.adapt(["item3"], profile={"age": 70}).save(tmp_path / "users.safetensors")
    again = alone.load_users(tmp_path / "users.safetensors")[0]
    assert again.recommend(k=30) == alone.adapt(["item3"], profile={"age": 70}).recommend(k=30)


def test_saved_and_with_more_items_it_is_the_same(model: ProfilePopularity, tmp_path: Path) -> None:
    mr.save(model, tmp_path / "model.safetensors")
    again = mr.Recommender(mr.load(tmp_path / "model.safetensors"))
    told = {"age": 31.5, "sex": "m"}
    assert again.adapt([], profile=told).recommend(k=40) == mr.Recommender(model).adapt([], profile=told).recommend(
        k=40
    )
    grown = model.add_items(mr.Catalog(mr.Vocabulary(["new"])))
    assert not bool(grown.item_mask()[-1])
    lists = mr.Recommender(grown).adapt([], profile=told).recommend(k=40)
    assert lists == mr.Recommender(model).adapt([], profile=told).recommend(k=40)


def test_served_is_evaluated(model: ProfilePopularity) -> None:
    report = mr.evaluate(model, DOWN, k=(5,), part="serving")
    recommender = mr.Recommender(model)
    assert DOWN.profiles is not None
    plain = mr.evaluate(Popularity(UP), DOWN, k=(5,), part="serving")
    assert report.metrics["recall@5"].mean > 1.3 * plain.metrics["recall@5"].mean
    rows = DOWN.profiles.features
    encoding = DOWN.profiles.encodings["age"]
    assert isinstance(encoding, Numbers)
    for user, target, rank in list(zip(report.user, report.target, report.rank, strict=True))[:20]:
        age = float(rows[user, : encoding.dim - 1] @ torch.tensor(encoding.knots))
        sex = DOWN.profiles.encodings["sex"]
        assert isinstance(sex, Categories)
        told = {"age": age, "sex": sex.values[int(rows[user, encoding.dim :].argmax())]}
        clicks = DOWN.item[DOWN.user == user][:-1]
        lists = recommender.adapt(DOWN.catalog.items.decode(clicks.tolist()), profile=told).recommend(k=25)
        ids = [each.id for each in lists]
        name = DOWN.catalog.items.ids[target - 1]
        if rank <= 25 and rank == int(rank):
            assert abs(ids.index(name) + 1 - rank) <= 1


def test_fit_tries_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, epochs=4)
    for data, tried in ((UP, True), (replace(UP, profiles=None), False)):
        report = mr.fit(data).report
        assert report is not None
        assert ("popularity by profile" in {each.name for each in report.candidates}) == tried


def test_the_service_takes_profiles(model: ProfilePopularity) -> None:
    with running(mr.Recommender(model)) as port:
        lists = []
        for profile in ({"age": 70}, {"age": 25, "sex": "f"}, {"age": "25", "sex": ["f"]}, None):
            asked = {"clicks": [], "k": 10} | ({} if profile is None else {"profile": profile})
            status, answer = ask(port, "/recommend", asked)
            assert status == 200, answer
            lists.append([each["id"] for each in answer["items"]])
        assert lists[1] == lists[2] and len({tuple(each) for each in lists}) == 3
        users = {"users": [{"clicks": [], "profile": {"age": 70}}, {"clicks": []}], "k": 10}
        status, answer = ask(port, "/recommend/users", users)
        assert [[each["id"] for each in user["items"]] for user in answer["users"]] == [lists[0], lists[3]]
        for wrong in ({"age": "old"}, {"colour": 1}, {"age": None}, {"age": {}}, [1], {f"c{n}": 1 for n in range(99)}):
            assert ask(port, "/recommend", {"clicks": [], "profile": wrong})[0] == 422
        assert ask(port, "/recommend", {"user": "u", "profile": {"age": 3}})[0] == 422


def test_rows_of_columns_that_are_missing() -> None:
    encodings = {"sex": Categories(("f", "m")), "age": Numbers((1.0, 3.0))}
    rows = profile_rows(encodings, [{"age": 2}, {"sex": "m", "age": None}], 2)
    assert rows.tolist() == [[0, 0, 0, 1, 0.5, 0.5, 0], [0, 1, 0, 0, 0, 0, 1]]


def test_reasons_are_of_the_same_user_with_fewer_clicks() -> None:
    """Leaving a click out must not leave the profile out."""
    parts = {"profile": ProfilePopularity(UP), "co-clicks": CoClicks(UP)}
    serving = mr.Recommender(Ensemble(parts, UP, weights=ContextWeights(list(parts), context=False)))
    clicks, profile = ["item3", "item8", "item30"], {"age": 70, "sex": "f"}

    def place(own: list[str]) -> float:
        scores = serving.adapt(own, profile=profile).scores[serving.model.item_mask()].double()
        at = int(serving.model.item_mask()[: UP.catalog.items.encode(["item12"])[0]].sum())
        return float((scores[at] - scores.mean()) / scores.std(correction=0))

    whole = place(clicks)
    expected = {item: whole - place([other for other in clicks if other != item]) for item in clicks}
    found = {each.id: each.effect for each in serving.adapt(clicks, profile=profile).because("item12")}
    assert found == pytest.approx(expected, abs=1e-4)
