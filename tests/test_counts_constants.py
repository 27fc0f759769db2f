"""What the constants of counts do: another value fails here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.model import Model
from metarec.recipes import EASE, CoClicks, ItemKNN, LivePopularity, Popularity, Transitions
from metarec.types import Examples


def clicks(*users: list[tuple[int, float]], items: int = 150, name: str = "u") -> Dataset:
    """One user per list of items and times."""
    user = np.repeat(np.arange(1, len(users) + 1), [len(own) for own in users])
    item, time = (np.array(column) for column in zip(*(click for own in users for click in own), strict=True))
    catalog = Catalog(Vocabulary([f"i{number}" for number in range(items)]))
    warm = np.isin(np.arange(items + 1), item)
    return Dataset(
        Vocabulary([f"{name}{n}" for n in range(len(users))], "user"), catalog, user, item, time.astype(float), warm
    )


def scores_after(model: Model, *history: int, time: float | None = None) -> torch.Tensor:
    """(I,) float64 of a user with these clicks."""
    one = torch.ones(1, 1, dtype=torch.int64)
    when = None if time is None else one * time
    query = Examples(torch.tensor([history]), one * (len(history) - 1), one, one.unsqueeze(2), one.float(), when)
    assert model.catalog is not None
    return model.scores(model.encode(query, query)).exact(torch.arange(model.catalog.size).unsqueeze(0))[0]


def test_popularity_adds_half_a_click() -> None:
    data = clicks([(1, 0.0), (1, 1.0), (2, 2.0)])
    for model in (Popularity(data), LivePopularity(data, window=100.0)):
        assert scores_after(model, 1)[:4].exp().tolist() == pytest.approx([0.5, 2.5, 1.5, 0.5])


def test_a_click_leads_to_the_next_ten() -> None:
    data = clicks([(item, float(item)) for item in range(1, 15)])
    for model in (Transitions(data), Transitions(data, live=True)):
        for time in (None, 1e3):
            found = scores_after(model, 1, time=time).exp() - 1e-4
            expected = [1 / (10 + 30) if 2 <= item <= 11 else 0.0 for item in range(151)]
            assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_co_clicks_reach_ten_clicks_either_way_and_add_ten_clicks() -> None:
    data = clicks([(item, float(item)) for item in range(1, 25)])
    for model in (CoClicks(data), CoClicks(data, live=True)):
        for time in (None, 1e3):
            found = scores_after(model, 12, time=time).exp() - 1e-3
            expected = [1 / 11 if 2 <= item <= 22 and item != 12 else 0.0 for item in range(151)]
            assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_twenty_clicks_are_read_and_each_earlier_one_counts_nine_tenths() -> None:
    data = clicks(*([(item, 0.0), (item + 50, 1.0)] for item in range(1, 31)))
    for model in (Transitions(data), Transitions(data, live=True)):
        for time in (None, 1e3):
            found = scores_after(model, *range(1, 31), time=time).exp() - 1e-4
            for back in range(30):
                expected = 0.9**back / 31 if back < 20 else 0.0
                assert float(found[80 - back]) == pytest.approx(expected, abs=1e-12)
    together = scores_after(CoClicks(data), *range(1, 31)).exp() - 1e-3
    for back in range(30):
        assert float(together[80 - back]) == pytest.approx(0.9**back / 11 if back < 20 else 0.0, abs=1e-12)


def test_a_transition_is_forgotten_after_twelve_half_lives() -> None:
    half_life = 100.0
    for age, left in ((0.0, True), (1190.0, True), (1201.0, False)):
        late = [(9, 5000.0 + age)]
        data = clicks([(1, 4000.0), (2, 5000.0)], late)
        model = Transitions(data, half_life=half_life, live=True)
        now = math.nextafter(5001.0 + age, math.inf)
        kept = 2.0 ** -((now - 5000.0) / half_life) if left else 0.0
        for time in (None, now):
            found = scores_after(model, 1, time=time).exp() - 1e-4
            assert float(found[2]) == pytest.approx(kept / (kept + 30), abs=1e-14, rel=1e-6)
        moved = Transitions(clicks([(1, 4000.0), (2, 5000.0)]), half_life=half_life, live=True)
        moved.observe(clicks(late, name="somebody else "))
        found = scores_after(moved, 1).exp() - 1e-4
        assert float(found[2]) == pytest.approx(kept / (kept + 30), abs=1e-14, rel=1e-6)


def test_ease_is_penalised_by_two_hundred() -> None:
    data = clicks(*[[(1, 0.0), (2, 1.0)]] * 3, [(2, 5.0)])
    gram = np.array([[3.0, 3.0], [3.0, 4.0]]) + 200.0 * np.eye(2)
    inverse = np.linalg.inv(gram)
    assert float(scores_after(EASE(data), 1)[2]) == pytest.approx(-inverse[0, 1] / inverse[1, 1], rel=1e-5)


def test_itemknn_has_a_hundred_neighbours_and_shrinks_by_twenty() -> None:
    data = clicks(*([(1, 0.0), (item, 1.0)] for item in range(2, 140)))
    found = scores_after(ItemKNN(data), 1)
    assert int((found > 0).sum()) == 100
    assert float(found.max()) == pytest.approx(1 / (math.sqrt(138) + 20), rel=1e-6)
    assert ItemKNN(data).decay == 1
