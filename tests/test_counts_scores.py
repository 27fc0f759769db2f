"""Scores of counts as values: pieces, exact numbers, bounds and moments, against the whole and against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from count_worlds import ALL, LIVE, asked, every_score, world
from metarec.functional.fusion import standardise
from metarec.recipes import CoClicks, LivePopularity, Transitions, asked_pairs
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.sparse_scores import SparseScores
from metarec.recipes.table_scores import ScoreTable, TableScores
from metarec.scoring import DenseScores, UserState
from metarec.types import Examples

TIMES = [None, [100.0, 250.0, 1e6]]


@pytest.mark.parametrize("time", TIMES, ids=["now", "past"])
@pytest.mark.parametrize("name", ALL)
def test_pieces_are_the_whole_and_the_error_bounds_them(name: str, time: list[float] | None) -> None:
    model, query = ALL[name](world(1)), asked(1, time=time)
    scores = model.scores(model.encode(query, query))
    whole, exact = scores.approximate(0, 31), every_score(model, query)
    assert whole.dtype == torch.float32 and exact.dtype == torch.float64 and len(scores) == 24
    torch.testing.assert_close(torch.cat([scores.approximate(a, a + 7) for a in (0, 7, 14)], 1), whole[:, :21])
    error = scores.error()
    assert error.shape == (24,) and error.dtype == torch.float64
    assert ((whole.double() - exact).abs() <= error.unsqueeze(1)).all() and (error < 1e-5).all()
    codes = torch.randint(0, 31, (24, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(scores.exact(codes), exact.gather(1, codes))
    assert torch.equal(model.adapt(query)(query).scores.flatten(0, 1), whole)
    whole.zero_()
    assert scores.approximate(0, 31).any(), "a piece is a new tensor"


@pytest.mark.parametrize("time", TIMES, ids=["now", "past"])
@pytest.mark.parametrize("name", ALL)
def test_exact_is_of_one_user_whoever_else_is_asked_about(
    name: str, time: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, query = ALL[name](world(2, clicks=900)), asked(2, time=time)
    exact = every_score(model, query)
    state = model.encode(query, query)
    everything = torch.arange(31).unsqueeze(0)
    for limit in (64, 0):
        monkeypatch.setattr(asked_pairs, "FEW_RANGES", limit)
        for row in range(24):
            alone = model.scores(state[row : row + 1])
            assert torch.equal(alone.exact(everything)[0], exact[row])
            assert torch.equal(alone.exact(everything[:, 4:5])[0, 0], exact[row, 4])
    monkeypatch.setattr(asked_pairs, "AT_ONCE", 50)
    assert torch.equal(every_score(model, query), exact)
    parts = [model.scores(state)[3:9], model.scores(UserState.join([state[3:5], state[5:9]]))]
    for part in parts:
        assert len(part) == 6 and torch.equal(part.exact(everything.expand(6, -1)), exact[3:9])
        torch.testing.assert_close(part.moments(), tuple(m[3:9] for m in model.scores(state).moments()))
    assert len(model.scores(state)[5:5]) == 0 and model.scores(state)[5:5].approximate(0, 31).shape == (0, 31)


def test_now_beside_the_past_is_as_alone() -> None:
    for name, make in LIVE.items():
        model, query = make(world(3)), asked(3, time=[150.0, float("nan"), 300.0])
        exact, state = every_score(model, query), model.encode(query, query)
        now = state.tensors["time"].isnan()
        assert now.any() and not now.all(), name
        everything = torch.arange(31)
        for chosen in (now, ~now):
            part = state[chosen]
            assert torch.equal(model.scores(part).exact(everything.expand(len(part), -1)), exact[chosen]), name


@pytest.mark.parametrize("time", TIMES, ids=["now", "past"])
@pytest.mark.parametrize("name", ALL)
def test_moments_are_those_by_which_scores_are_standardised(name: str, time: list[float] | None) -> None:
    model, query = ALL[name](world(4)), asked(4, time=time)
    mean, deviation = model.scores(model.encode(query, query)).moments()
    check_moments(mean, deviation, every_score(model, query), model.item_mask())


def check_moments(mean: torch.Tensor, deviation: torch.Tensor, exact: torch.Tensor, known: torch.Tensor) -> None:
    expected = standardise(exact, known)
    unit = torch.where(deviation > 0, deviation, torch.inf).unsqueeze(1)
    found = torch.where(known, (exact - mean.unsqueeze(1)) / unit, 0)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("above", [3.0, 1e-6, 1e-5, 3e-5])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 5e-7, 1e-5, 1.0])
@pytest.mark.parametrize("base", [-9.0, 0.0])
def test_moments_where_all_is_nearly_flat(base: float, spread: float, above: float) -> None:
    rng, known = torch.Generator().manual_seed(0), torch.arange(41) > 0
    known[7:9] = False
    for count in (0, 1, 3, 40):
        item = (torch.randperm(40, generator=rng)[:count] + 1).sort().values
        value = base + above + spread * torch.randn(count, generator=rng).double()
        scores = SparseScores(torch.tensor([0, count]), item, value, base if count < 40 else -50.0, known)
        whole = scores.exact(torch.arange(41).unsqueeze(0))
        check_moments(*scores.moments(), whole, known)
        table = ScoreTable(whole, known)
        check_moments(*TableScores(table, torch.zeros(1, dtype=torch.int64)).moments(), whole, known)


@pytest.mark.parametrize("spread", [0.0, 3e-7, 1e-5, 1.0])
def test_moments_of_a_graph_that_is_nearly_flat(spread: float) -> None:
    torch.manual_seed(0)
    model = LightGCN(world(4), dim=5, layers=1)
    with torch.no_grad():
        model.users.zero_()
        model.items.copy_(1 + spread * torch.randn_like(model.items))
    query = asked(4)
    mean, deviation = model.scores(model.encode(query, query)).moments()
    check_moments(mean, deviation, every_score(model, query), model.item_mask())


@pytest.mark.parametrize("name", ["EASE", "EASE of some", "ItemKNN", "LightGCN"])
def test_a_history_is_a_set(name: str) -> None:
    model, query = ALL[name](world(9)), asked(9, longest=6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    position = torch.full_like(query.position, 11)
    twice = torch.cat([query.history, query.history[:, order]], 1)
    wide = replace(query, history=torch.cat([query.history, torch.zeros_like(query.history)], 1), position=position)
    assert torch.equal(every_score(model, replace(query, history=twice, position=position)), every_score(model, wide))


def test_sparse_scores_are_dense_ones() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((6, 40)) < 0.3, rng.normal(size=(6, 40)), -2.0)
    dense[3] = -2.0
    dense[:, 0] = -2.0
    user, item = np.nonzero(dense != -2.0)
    start = torch.from_numpy(np.searchsorted(user, np.arange(7)))
    known = torch.arange(40) > 0
    sparse = SparseScores(start, torch.from_numpy(item), torch.from_numpy(dense[user, item]), -2.0, known)
    whole = DenseScores(torch.from_numpy(dense), known)
    for users in (slice(0, 6), slice(2, 5), slice(3, 4), slice(4, None), slice(5, 2)):
        one, other = sparse[users], whole[users]
        assert len(one) == len(other)
        for start_, stop in ((0, 40), (0, 7), (11, 29), (39, 40)):
            torch.testing.assert_close(
                one.approximate(start_, stop).double(), other.approximate(start_, stop), atol=1e-6, rtol=0
            )
        codes = torch.from_numpy(rng.integers(0, 40, (len(one), 5)))
        assert torch.equal(one.exact(codes), other.exact(codes))
        torch.testing.assert_close(one.moments(), other.moments())


def test_states_are_small_and_read_only_what_they_may() -> None:
    data, query = world(5), asked(5)
    narrow = {name: make(data).encode(query, query) for name, make in ALL.items()}
    for name, state in narrow.items():
        width = 20 if "transitions" in name or "co-clicks" in name else 0 if "popularity" in name else 26
        assert state.nbytes == 24 * (1 + 4 * width + 8 * (name in LIVE)), name
        later = query.history.clone()
        later[torch.arange(26) > query.position.amax(1, keepdim=True)] = 9
        again = ALL[name](data).encode(query, replace(query, history=later))
        same = [torch.equal(state.tensors[key], again.tensors[key]) for key in state.tensors if key != "time"]
        assert all(same), name
        assert state.to("cpu").tensors.keys() == state.tensors.keys()


def test_time_of_states_is_float64_and_nan_where_it_is_not_told() -> None:
    model, second = LivePopularity(world(6), window=10.0), 1_700_000_000
    query = asked(6)
    assert model.encode(query, query).tensors["time"].isnan().all()
    told = replace(query, time=torch.full((12, 2), second + 1))
    assert model.encode(told, told).tensors["time"].tolist() == [second + 1.0] * 24


@pytest.mark.parametrize("make", [Transitions, CoClicks, lambda data: LightGCN(data, dim=3)])
def test_modules_are_called_as_before(make) -> None:
    model, query = make(world(7)), asked(7)
    assert isinstance(model, torch.nn.Module) and isinstance(query, Examples)
    found = model.adapt(query)(query)
    assert found.item_mask.equal(model.item_mask()) and found.scores.shape == (12, 2, 31)
    assert model.catalog is not None and model.information == "upstream" and model.fitted_until == world(7).time.max()


def test_live_counts_of_many_pairs_are_summed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model, query = CoClicks(world(8), live=True), asked(8, time=[150.0, float("nan")])
    whole = every_score(model, query)
    monkeypatch.setattr(asked_pairs, "CELLS", 70)
    assert torch.equal(every_score(model, query), whole)
