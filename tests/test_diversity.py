"""Diversified lists: a greedy loop by hand, quotas, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from metarec import Catalog, Dataset, Recommender, split_by_time
from metarec.data import Modality
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes.ease import EASE

UP, _ = split_by_time(planted(users=200, items=60), at=PLANTED_SPLIT)
HISTORIES = [["item3", "item14", "item15"], ["item7"], [], ["item1", "item2", "item40", "item22"]]


def gappy() -> Any:
    """One view that a third of the items lack, and one that all have."""
    views = dict(UP.catalog.modalities)
    text = views["text"]
    present = text.present & (torch.arange(61) % 3 > 0)
    views["text"] = Modality("text", text.features * present.unsqueeze(1), present)
    return replace(UP, catalog=Catalog(UP.catalog.items, views, UP.catalog.attributes))


def alike(catalog: Catalog, a: int, b: int) -> float:
    found = [
        float(torch.nn.functional.cosine_similarity(view.features[a], view.features[b], dim=0))
        for view in catalog.modalities.values()
        if view.present[a] and view.present[b]
    ]
    return float(np.mean(found)) if found else 0.0


def greedy(codes: list[int], scores: list[float], catalog: Catalog, k: int, weight: float) -> list[int]:
    low, high = min(scores), max(scores)
    relevance = {c: (s - low) / ((high - low) or 1) for c, s in zip(codes, scores, strict=True)}
    chosen: list[int] = []
    while len(chosen) < k:
        near = {c: max((alike(catalog, c, other) for other in chosen), default=0.0) for c in codes}
        left = [c for c in codes if c not in chosen]
        chosen.append(max(left, key=lambda c: (1 - weight) * relevance[c] - weight * near[c]))
    return chosen


@pytest.mark.parametrize("weight", [0.2, 0.7, 1.0])
def test_lists_are_those_of_a_greedy_loop(weight: float) -> None:
    data = gappy()
    users = Recommender(EASE(data)).adapt(HISTORIES)
    pool, found = users.recommend(k=40), users.recommend(k=4, diversity=weight)
    for own, best, scores in zip(found.codes.tolist(), pool.codes.tolist(), pool.scores.tolist(), strict=True):
        assert own == greedy(best, scores, data.catalog, 4, weight)
    one = Recommender(EASE(data)).adapt(HISTORIES[0]).recommend(k=4, diversity=weight)
    assert [item.id for item in one] == found.ids[0].tolist()
    assert [item.score for item in one] == found.scores[0].tolist()


def test_none_and_zero_leave_lists_as_they_are_and_more_is_more() -> None:
    users = Recommender(EASE(UP)).adapt(HISTORIES)
    plain, spread = users.recommend(k=6), []
    assert users.recommend(k=6, diversity=0).codes.tolist() == plain.codes.tolist()
    for weight in (0.0, 0.5, 1.0):
        lists = users.recommend(k=6, diversity=weight).codes.tolist()
        spread.append(np.mean([alike(UP.catalog, *pair) for own in lists for pair in combinations(own, 2)]))
    assert spread[0] > spread[1] > spread[2]


def test_a_quota_is_kept_by_the_best_items_that_it_has_room_for() -> None:
    users = Recommender(EASE(UP)).adapt(HISTORIES)
    cluster = dict(zip(UP.catalog.items.ids, UP.catalog.attributes["cluster"], strict=True))
    found = users.recommend(k=8, diversity={"cluster": 2})
    everything = users.recommend(k=53)
    for own, whole in zip(found.ids.tolist(), everything, strict=True):
        expected: list[str] = []
        for item in whole:
            if Counter(cluster[i] for i in expected)[cluster[item.id]] < 2 and len(expected) < 8:
                expected.append(item.id)
        assert own == expected


def test_items_of_several_categories_need_room_in_each_and_those_of_none_always_have_it() -> None:
    kinds = ["a b", "a", "b", ""]
    column = [kinds[i % 4] for i in range(60)]
    data = replace(UP, catalog=replace(UP.catalog, attributes={"kind": column}))
    users = Recommender(EASE(data)).adapt(HISTORIES)
    for own in users.recommend(k=12, diversity={"kind": 3}).codes.tolist():
        words = Counter(word for code in own for word in column[code - 1].split())
        assert max(words["a"], words["b"]) <= 3 and len(own) == 12


def test_further_down_the_catalogue_where_the_best_items_are_all_of_one_kind_and_short_where_it_ends() -> None:
    scores = EASE(UP)
    best = [item.id for item in Recommender(scores).adapt(HISTORIES[0]).recommend(k=50)]
    kind = dict.fromkeys(best[:45], "one") | {best[45]: "two"}
    data = replace(
        UP, catalog=replace(UP.catalog, attributes={"kind": [kind.get(i, "three") for i in UP.catalog.items.ids]})
    )
    user = Recommender(EASE(data)).adapt(HISTORIES[0])
    assert [i.id for i in user.recommend(k=3, diversity={"kind": 1})] == [best[0], best[45], best[46]]
    with pytest.warns(UserWarning, match="k=9"):
        assert len(user.recommend(k=9, diversity={"kind": 1})) == 3


def test_filters_hold_and_seen_items_stay_out() -> None:
    user = Recommender(EASE(UP)).adapt(HISTORIES[3])
    few = [f"item{i}" for i in range(10)]
    for diversity in (0.8, {"cluster": 1}):
        found = {i.id for i in user.recommend(k=5, diversity=diversity, allow=few, deny=["item5"], exclude_seen=True)}
        assert found <= {*few} - {"item5", "item1", "item2"} and len(found) == 5
        some = user.recommend(k=3, diversity=diversity, candidates=["item9", "item8", "item6"])
        assert {i.id for i in some} == {"item9", "item8", "item6"}


@pytest.mark.parametrize(
    ("diversity", "message"),
    [
        (1.5, "1.5"),
        (-0.1, "-0.1"),
        (True, "True"),
        ("high", "high"),
        ({"cluster": 0}, "cluster"),
        ({"genre": 2}, "genre"),
    ],
)
def test_what_means_nothing_is_refused(diversity: Any, message: str) -> None:
    user = Recommender(EASE(UP)).adapt(HISTORIES[0])
    with pytest.raises(ValueError, match=message):
        user.recommend(k=3, diversity=diversity)


def test_features_are_needed_for_diversity_by_features() -> None:
    bare = replace(UP, catalog=replace(UP.catalog, modalities={}))
    with pytest.raises(ValueError, match="cluster"):
        Recommender(EASE(bare)).adapt(HISTORIES).recommend(k=3, diversity=0.5)


def test_lists_differ_by_attributes_where_items_have_no_vectors() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"user": rng.integers(0, 80, 900), "item": rng.integers(0, 40, 900), "time": range(900)})
    about = {"item": range(40), "genres": [["a", "b", "c", "d"][n % 4 : n % 4 + 2] for n in range(40)]}
    price = [None if n % 7 == 0 else float(n % 5) for n in range(40)]
    items = pl.DataFrame({**about, "price": price}, strict=False)
    data = Dataset.from_frame(frame, items, attributes=["genres", "price"])
    assert set(data.catalog.modalities) == {"attributes"}
    users = Recommender(EASE(data)).adapt([[3, 14, 15], [7]])
    pool, found, plain = users.recommend(k=30), users.recommend(k=3, diversity=0.6), users.recommend(k=3)
    for own, best, scores in zip(found.codes.tolist(), pool.codes.tolist(), pool.scores.tolist(), strict=True):
        assert own == greedy(best, scores, data.catalog, 3, 0.6)
    assert found.codes.tolist() != plain.codes.tolist()
    quota = Recommender(EASE(data)).adapt([3, 14, 15]).recommend(k=2, diversity={"genres": 1})
    words = [word for one in quota for word in about["genres"][one.id]]
    assert len(words) == len(set(words))
