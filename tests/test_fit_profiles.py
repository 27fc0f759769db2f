"""What fit does with profiles of users: the part that reads them ranks for whoever has not clicked yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr
from fit_worlds import shorten
from metarec.recipes import Ensemble, Popularity, ProfilePopularity
from metarec.recipes.profile_popularity import first_click_gain


def _tastes(*, say: bool, users: int = 240, seed: int = 0) -> mr.Dataset:
    """People of two groups with items of their own, of which the profile says something or nothing."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, users)
    item = rng.integers(0, 20, (users, 8)) + 20 * group[:, None]
    start = 10_000 * np.arange(users)[:, None] + 1_600_000_000
    columns = {"user": np.repeat(np.arange(users), 8), "item": item.ravel(), "time": (start + np.arange(8)).ravel()}
    told = group if say else rng.integers(0, 2, users)
    people = pl.DataFrame({"user": np.arange(users), "group": ["ab"[one] for one in told]})
    return mr.Dataset.from_frame(pl.DataFrame(columns), users=people, profile=["group"])


@pytest.mark.parametrize("say", [True, False])
def test_users_without_clicks_are_ranked_by_profiles_where_these_foresee_first_clicks(
    say: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shorten(monkeypatch, epochs=2)
    data = _tastes(say=say)
    up, _ = mr.split_by_time(data, mr.split_time(data))
    model = mr.fit(up)
    recommender = mr.Recommender(model)
    if not say:
        gain = float(next(note for note in model.report.notes if note.startswith("profiles")).split()[1])
        assert (model.first is not None) == (gain > 0)
        return
    assert model.first == "popularity by profile"
    alone = mr.Recommender(ProfilePopularity(up))
    mr.save(model, tmp_path / "model")
    for own in (recommender, mr.Recommender.load(tmp_path / "model")):
        for group in "ab":
            found = own.adapt([], profile={"group": group}).recommend(k=5)
            expected = alone.adapt([], profile={"group": group}).recommend(k=5)
            assert [one.id for one in found] == [one.id for one in expected]
        weights = own.adapt([], profile={"group": "a"}).weights
        assert weights.pop("popularity by profile") == 1 and not any(weights.values())
        assert sum(own.adapt([]).weights.values()) > 0


def test_the_first_part_leaves_users_with_clicks_or_without_profiles_alone() -> None:
    up, _ = mr.split_by_time(data := _tastes(say=True), mr.split_time(data))
    parts = {"popularity": Popularity(up), "profile": ProfilePopularity(up)}
    plain, first = Ensemble(parts, up), Ensemble(parts, up)
    first.first = "profile"
    for history, profile in (([], None), ([3], {"group": "a"}), ([3], None)):
        lists = [mr.Recommender(one).adapt(history, profile=profile).recommend(k=5) for one in (plain, first)]
        assert lists[0] == lists[1]


def test_the_gain_of_first_clicks_is_that_of_lists_by_hand() -> None:
    data = _tastes(say=True)
    up, down = mr.split_by_time(data, mr.split_time(data))
    model, recommender = ProfilePopularity(up), mr.Recommender(ProfilePopularity(up))
    found, expected = first_click_gain(model, down, torch.from_numpy(up.warm)), []
    assert down.profiles is not None
    for user, at in zip(down.user_codes, down.offsets[:-1], strict=True):
        group = down.profiles.encodings["group"].values[int(down.profiles.features[user][:2].argmax())]  # type: ignore[union-attr]
        target = int(down.item[at])
        values = []
        for profile in ({"group": group}, {}):
            scores = recommender.adapt([], profile=profile).scores.numpy()[np.flatnonzero(up.warm)]
            own = scores[np.flatnonzero(up.warm).tolist().index(target)]
            rank = 1 + (scores > own).sum() + ((scores == own).sum() - 1) / 2  # ties at the mean rank
            values.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
        expected.append(values[0] - values[1])
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
