"""Properties that hold for any input: of the vocabulary, the metrics, the report and the split of a split."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from metarec.data import Vocabulary
from metarec.data.examples import leave_last_out
from metarec.data.features import encode
from metarec.functional import mrr_at, ndcg_at, ranks, recall_at
from metarec.report import Report
from split_events import EVENTS, Event, dataset, triples

IDS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True)
SCORES = st.lists(st.integers(-9, 9), min_size=2, max_size=30)
METRICS = {"recall": recall_at, "mrr": mrr_at, "ndcg": ndcg_at}


@given(IDS, st.data())
def test_a_vocabulary_is_a_bijection_with_codes_from_one(ids: list[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary(ids)
    wanted = data.draw(st.lists(st.sampled_from(ids), max_size=30))
    codes = vocabulary.encode(wanted)
    assert [ids[code - 1] for code in codes.tolist()] == wanted == vocabulary.decode(codes)
    assert vocabulary.encode(ids).tolist() == list(range(1, len(ids) + 1))
    assert (len(vocabulary), vocabulary.size) == (len(ids), len(ids) + 1)
    assert all(each in vocabulary for each in wanted)


@given(IDS, st.text(min_size=1, max_size=8))
def test_a_vocabulary_refuses_what_it_does_not_know(ids: list[str], other: str) -> None:
    assume(other not in ids)
    vocabulary = Vocabulary(ids)
    assert other not in vocabulary
    with pytest.raises(ValueError, match="unknown item id"):
        vocabulary.encode([*ids, other])
    for code in (0, len(ids) + 1, -1):
        with pytest.raises(ValueError, match=rf"item code {code} is outside 1\.\.{len(ids)}"):
            vocabulary.decode(np.array([code]))
    with pytest.raises(ValueError, match="appears more than once"):
        Vocabulary([*ids, ids[0]])


@given(IDS, st.lists(st.text(max_size=8), max_size=20))
def test_a_column_of_ids_gets_the_codes_of_the_vocabulary(ids: list[str], others: list[str]) -> None:
    column = [*others, *ids]
    known = {name: code for code, name in enumerate(ids, 1)}
    assert encode(pl.Series(column, dtype=pl.String), Vocabulary(ids)).tolist() == [known.get(x, 0) for x in column]


@given(SCORES, st.data())
def test_a_better_score_never_has_a_worse_rank(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    better = list(scores)
    better[target] += data.draw(st.integers(0, 9))
    found = [float(ranks(torch.tensor(x, dtype=torch.float64), torch.tensor(target))) for x in (scores, better)]
    assert 1 <= found[1] <= found[0] <= len(scores)


@given(SCORES, st.data(), st.floats(0.1, 50), st.floats(-50, 50))
def test_only_the_order_of_scores_matters(scores: list[int], data: st.DataObject, scale: float, shift: float) -> None:
    target = torch.tensor(data.draw(st.integers(0, len(scores) - 1)))
    values = torch.tensor(scores, dtype=torch.float64)
    assert ranks(values, target) == ranks(values * scale + shift, target) == ranks(values**3, target)


@given(st.lists(st.integers(2, 60).map(lambda n: n / 2), min_size=1, max_size=20), st.integers(1, 30))
def test_metrics_are_shares_that_grow_with_k_and_fall_with_the_rank(ranking: list[float], k: int) -> None:
    rank = torch.tensor(sorted(ranking), dtype=torch.float64)
    for metric in METRICS.values():
        found = metric(rank, k)
        assert bool(((found >= 0) & (found <= 1)).all())
        assert bool((found.diff() <= 0).all()), "a later place is worth no more"
        assert bool((metric(rank, k + 1) >= found).all()), "a longer list misses no more"
    assert bool((mrr_at(rank, k) <= ndcg_at(rank, k)).all()) and bool((ndcg_at(rank, k) <= recall_at(rank, k)).all())


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20), st.booleans()), min_size=1, max_size=30))
def test_the_means_of_a_report_are_those_of_its_halves(rows: list[tuple[int, int, bool]]) -> None:
    user, rank, cold = (np.array(column) for column in zip(*sorted(rows), strict=True))
    report = Report(user, user, rank.astype(float), cold, k=(5, 10))
    for name, whole in report.metrics.items():
        values = [float(METRICS[name.split("@")[0]](torch.tensor([float(r)]), int(name.split("@")[1]))) for r in rank]
        assert whole.mean == pytest.approx(sum(values) / len(values), rel=1e-6)
        parts = [report.on(mask)[name].mean * mask.sum() for mask in (cold, ~cold) if mask.any()]
        assert sum(parts) == pytest.approx(whole.mean * len(rows), rel=1e-9)


@given(EVENTS, st.integers(0, 4), st.integers(1, 4))
def test_cutting_last_clicks_is_what_a_loop_does(events: list[Event], clicks: int, least: int) -> None:
    data = dataset(events)
    kept = leave_last_out(data, clicks, least=least)
    if not clicks:
        assert kept is data
        return
    expected = []
    for user in sorted({event[0] for event in events}):
        mine = [i for i in range(len(data)) if data.user[i] == user]
        mine = mine[: max(0, len(mine) - clicks)]
        expected += mine if len(mine) >= least else []
    assert triples(kept) == sorted((int(data.user[i]), int(data.item[i]), int(data.time[i])) for i in expected)
