"""The service of a model whose ids are whole numbers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from metarec import Dataset, Recommender
from metarec.recipes import Ensemble, LivePopularity, Popularity
from service_helpers import ask, running

COUNT = 30
CLICKS = pl.DataFrame(
    {
        "user": np.arange(COUNT) % 7 + 100,
        "item": (np.arange(COUNT) * 11) % 10 * 5,
        "time": np.arange(COUNT) + 1_700_000_000,
    }
)
LATER = 1_700_001_000.0


@pytest.fixture
def recommender() -> Recommender:
    items = pl.DataFrame({"item": range(0, 50, 5), "title": [f"film {n}" for n in range(10)]})
    data = Dataset.from_frame(CLICKS, items)
    parts = {"all": Popularity(data), "live": LivePopularity(data, window=1e6)}
    return Recommender(Ensemble(parts, data))


def test_ids_go_in_and_out_as_numbers(recommender: Recommender) -> None:
    expected = recommender.adapt([5, 10]).recommend(k=3, deny=[20])
    with running(recommender, allow_changes=True) as port:
        status, answer = ask(port, "/recommend", {"clicks": [5, 10], "k": 3, "deny": [20]})
        assert status == 200
        assert [item["id"] for item in answer["items"]] == [entry.id for entry in expected]
        assert [item["attributes"] for item in answer["items"]] == [{"title": f"film {e.id // 5}"} for e in expected]
        chosen = ask(port, "/recommend", {"clicks": [5], "candidates": [15, 25], "k": 2})[1]["items"]
        assert {item["id"] for item in chosen} == {15, 25}
        filtered = ask(port, "/recommend", {"clicks": [5], "filter": {"title": ["film 3"]}, "k": 1})[1]["items"]
        assert [item["id"] for item in filtered] == [15]
        told = ask(port, "/clicks", {"clicks": [{"user": 7, "item": 45, "time": LATER}]})
        assert told == (200, {"clicks": 1, "new_users": [7], "not_counted": 0})
        named = ask(port, "/recommend", {"user": 7, "k": 2})[1]["items"]
        assert named == ask(port, "/recommend", {"clicks": [45], "k": 2})[1]["items"]
        assert ask(port, "/items/remove", {"ids": [5]})[1] == {"items": 10, "removed": 1}
        status, answer = ask(port, "/recommend", {"clicks": ["5"]})
        assert status == 422 and "clicks: unknown item id '5'; nearest known ids: 5" in answer["error"]
        status, answer = ask(port, "/recommend", {"clicks": [7]})
        assert status == 422 and "unknown item id 7" in answer["error"]
