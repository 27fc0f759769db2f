"""Coverage, novelty, diversity, popularity and calibration: RecTools' numbers, and loops over users and pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from list_worlds import Hashed, K, lists_of, sides
from metarec import Dataset, Report, evaluate
from metarec.comparison import compare
from metarec.data.examples import UNKNOWN, begun_after, on_catalog
from metarec.data.item_counts import ItemCounts
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.types import Modality

UP, DOWN = sides()
# RecTools 0.19.0: CatalogCoverage(normalize=True), MeanInvUserFreq, IntraListDiversity with the mean cosine distance of
# both modalities, AvgRecPopularity; on the lists of Hashed and the upstream clicks.
RECTOOLS = {
    "coverage": (0.625, 0.95),
    "novelty": (2.3743120853594526, 2.3995646421236674),
    "diversity": (0.8298256169141397, 0.9258167986685087),
    "popularity": (14.638888888888888, 14.15625),
}


def histories(data: Dataset) -> dict[int, list[int]]:
    return {u: data.item[data.user == u].tolist() for u in data.user_codes.tolist()}


def test_the_numbers_are_those_of_rectools() -> None:
    found = evaluate(Hashed(), DOWN, k=K).beyond
    for name, values in RECTOOLS.items():
        for k, value in zip(K, values, strict=True):
            assert found[f"{name}@{k}"].mean == pytest.approx(value, abs=1e-9), (name, k)


def with_gaps(data: Dataset) -> Dataset:
    """Some items lack one modality, some both, and one has a vector of zeros."""
    views = {}
    for number, (name, view) in enumerate(sorted(data.catalog.modalities.items())):
        present = view.present & (torch.arange(41) % 5 != number) & (torch.arange(41) != 8)
        features = view.features * (present & (torch.arange(41) != 11)).unsqueeze(1)
        views[name] = Modality(name, features, present)
    return replace(data, catalog=replace(data.catalog, modalities=views))


def by_hand(down: Dataset, name: str, k: int) -> list[float]:
    """One metric of each user, from lists, pairs and logarithms."""
    counts = Counter(UP.item.tolist())
    users = Counter(item for _, item in {*zip(UP.user.tolist(), UP.item.tolist(), strict=True)})
    out = []
    for clicks in histories(down).values():
        own = lists_of(clicks[-2])[:k]
        if name == "novelty":
            out.append(float(np.mean([-math.log2(max(1, users[i]) / len(UP.user_codes)) for i in own])))
        elif name == "popularity":
            out.append(float(np.mean([counts[i] for i in own])))
        else:
            far = [
                1.0 - cosine(view.features[a], view.features[b])
                for view in down.catalog.modalities.values()
                for a, b in combinations(own, 2)
                if view.present[a] and view.present[b]
            ]
            out.append(float(np.mean(far)) if far else 0.0)
    return out


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    size = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / size if size else 0.0


@pytest.mark.parametrize("name", ["novelty", "diversity", "popularity"])
def test_each_users_value_is_that_of_a_loop(name: str) -> None:
    down = with_gaps(DOWN)
    report = evaluate(Hashed(), down, k=K, users_per_batch=5)
    for k in K:
        assert report.lists[f"{name}@{k}"].tolist() == pytest.approx(by_hand(down, name, k), abs=1e-12)


def divergence(history: list[str], listed: list[str], groups: set[str]) -> float:
    """Steck's, with 1% of the history's share in the list's."""
    p, q = ({g: sum(g in words.split() for words in own) for g in groups} for own in (history, listed))
    total = 0.0
    for group in groups:
        share, other = p[group] / len(history), q[group] / len(listed)
        if share:
            total += share * math.log(share / (0.99 * other + 0.01 * share))
    return total


def test_miscalibration_by_category_is_that_of_a_loop() -> None:
    column = DOWN.catalog.attributes["cluster"]
    found = evaluate(Hashed(), DOWN, k=K, category="cluster", max_length=4)
    expected = [
        divergence(
            [column[i - 1] for i in clicks[:-1][-4:]], [column[i - 1] for i in lists_of(clicks[-2])[:8]], {*column}
        )
        for clicks in histories(DOWN).values()
    ]
    assert found.lists["miscalibration@8"].tolist() == pytest.approx(expected, abs=1e-12)


def test_an_item_of_two_categories_counts_half_in_each_and_one_of_none_in_none() -> None:
    words = {"0": "even low", "1": "odd low", "9": ""}
    column = [words.get(name, "even" if int(name) % 2 == 0 else "odd") for name in DOWN.catalog.attributes["cluster"]]
    down = replace(DOWN, catalog=replace(DOWN.catalog, attributes={"kind": column}))
    found = evaluate(Hashed(), down, k=K, category="kind").lists["miscalibration@8"]
    for value, clicks in zip(found.tolist(), histories(down).values(), strict=True):
        shares = []
        for own in (clicks[:-1], lists_of(clicks[-2])[:8]):
            named = [column[i - 1].split() for i in own if column[i - 1]]
            shares.append({w: sum((w in n) / len(n) for n in named) / len(named) for w in ("even", "odd", "low")})
        p, q = shares
        assert value == pytest.approx(
            sum(p[w] * math.log(p[w] / (0.99 * q[w] + 0.01 * p[w])) for w in p if p[w]), abs=1e-12
        )


def test_without_a_category_miscalibration_is_about_popularity() -> None:
    counts = ItemCounts.of(UP.user, UP.item, UP.catalog.size)
    names = np.array(["head", "middle", "tail"])[counts.popularity_groups()]
    found = evaluate(Hashed(), DOWN, k=K).lists["miscalibration@3"]
    for value, clicks in zip(found.tolist(), histories(DOWN).values(), strict=True):
        own, listed = ([str(names[i]) for i in items] for items in (clicks[:-1], lists_of(clicks[-2])[:3]))
        assert value == pytest.approx(divergence(own, listed, {*names.tolist()}), abs=1e-12)
    for group, most in (("head", 0.3), ("tail", 0.25)):
        assert 0.1 < counts.clicks[names == group].sum() / counts.clicks.sum() < most
    assert counts.clicks[names == "head"].min() >= counts.clicks[names == "middle"].max()
    assert (names[counts.clicks == 0] == "tail").all()


def test_seen_items_are_in_no_list_where_they_are_left_out_and_spent_targets_do_not_count() -> None:
    report = evaluate(Hashed(), DOWN, k=K, exclude_seen=True)
    shown = {
        user: [i for i in lists_of(clicks[-2]) if i not in clicks[:-1]][:8]
        for user, clicks in histories(DOWN).items()
        if clicks[-1] not in clicks[:-1]
    }
    counts = Counter(UP.item.tolist())
    assert report.user.tolist() == [*shown] != DOWN.user_codes.tolist()
    assert report.coverage["coverage@8"] == len({i for own in shown.values() for i in own}) / 40
    expected = [float(np.mean([counts[i] for i in own])) for own in shown.values()]
    assert report.lists["popularity@8"].tolist() == pytest.approx(expected, abs=1e-12)


def test_batches_change_nothing_and_lists_longer_than_the_catalogue_are_the_catalogue() -> None:
    one, many = (evaluate(Hashed(), DOWN, k=(3, 100), users_per_batch=users) for users in (1, 512))
    assert one.coverage == many.coverage == {"coverage@3": 0.625, "coverage@100": 38 / 40}
    for name, values in one.lists.items():
        assert values.tolist() == pytest.approx(many.lists[name].tolist(), abs=1e-12)


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(DOWN, catalog=replace(DOWN.catalog, modalities={}), upstream_counts=None)
    report = evaluate(Hashed(), bare, k=K)
    assert {*report.beyond} == {"coverage@3", "coverage@8"}
    with pytest.raises(ValueError, match="genres"):
        evaluate(Hashed(), DOWN, category="genres")


def test_the_upstream_counts_go_with_the_data_to_another_catalogue_and_come_from_the_clicks_before() -> None:
    data = planted(users=60, items=40)
    late = begun_after(data, PLANTED_SPLIT)
    assert late.upstream_counts is not None and UP.upstream_counts is not None
    assert late.upstream_counts.clicks.tolist() == [
        int(((data.item == i) & (data.time <= PLANTED_SPLIT)).sum()) for i in range(41)
    ]
    assert begun_after(late, PLANTED_SPLIT).upstream_counts is late.upstream_counts
    part = planted(users=60, items=30).catalog
    moved = on_catalog(DOWN, part, np.arange(31) > 0)
    assert moved.dropped[UNKNOWN] and moved.upstream_counts is not None
    assert moved.upstream_counts.users.tolist() == UP.upstream_counts.users[:31].tolist()


def test_reports_tell_them_everywhere(tmp_path: Path) -> None:
    report = evaluate(Hashed(), DOWN, k=K)
    kinds = ["coverage", "novelty", "diversity", "popularity", "miscalibration"]
    lines = [line.split() for line in str(report).splitlines()]
    assert [line[0] for line in lines[2:10]] == ["recall", "mrr", "ndcg", *kinds]
    assert lines[5] == ["coverage", ".625", ".950"]
    rows = {(r["metric"], r["k"]): r["mean"] for r in report.to_frame().iter_rows(named=True) if r["slice"] == "all"}
    report.to_json(tmp_path / "report.json")
    read: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    for name in kinds:
        assert rows[name, 3] == read["beyond_accuracy"][f"{name}@3"]["mean"] == report.beyond[f"{name}@3"].mean
    assert read["per_user"]["novelty@8"] == report.lists["novelty@8"].tolist()


def test_list_metrics_are_compared_like_others() -> None:
    report = evaluate(Hashed(), DOWN, k=K)
    newer = replace(report, lists={"novelty@8": report.lists["novelty@8"] + 1})
    found = compare(newer, report, "novelty@8")
    assert (found.gain, found.gain_low) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="novelty@8"):
        newer.values("novelty@9")


def test_users_without_a_value_are_in_no_mean() -> None:
    one = np.array([1, 2, 3])
    report = Report(one, one, one / 1.0, one > 3, k=(2,), lists={"novelty@2": np.array([1.0, math.nan, 3.0])})
    assert report.beyond["novelty@2"].mean == 2
    assert report.to_dict()["per_user"]["novelty@2"] == [1.0, None, 3.0]  # type: ignore[index]
