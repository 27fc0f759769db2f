"""The ensemble against the fused score written out, user by user and item by item; and what a model can do."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.model import Model
from metarec.recipes import EASE, Ensemble, LivePopularity, Popularity, sasrec
from metarec.recipes.context_weights import ContextWeights
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import EpisodeBatch, Examples
from score_tables import EVERY, ITEMS, SIZE, WARM, Table, random_weights, scored, tables, users

WORLD = planted(users=60, items=ITEMS)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)


def ensemble(*, context: bool = True) -> Ensemble:
    out = Ensemble(tables(), weights=random_weights(context=context))
    out.catalog, out.warm = UP.catalog, WARM.numpy()
    return out


def written_out(batch: EpisodeBatch, *, context: bool = True) -> np.ndarray:
    """(users, items) from the formula."""
    weights, rows = random_weights(context=context), []
    for row in range(len(batch)):
        clicks = [i for i in batch.query.history[row].tolist() if i]
        z = min(3.0, max(-3.0, (math.log(1 + float(batch.query.gap[row, 0])) - 10.5) / 1.1))  # type: ignore[index]
        cold = sum(i >= 25 for i in clicks) / len(clicks)
        features = [1.0, math.log(len(clicks)) - 1.5, cold, z, z**2 - 1][: 5 if context else 1]
        expected = np.zeros(SIZE)
        for s, part in enumerate(tables().values()):
            weight = max(0.0, sum(f * w for f, w in zip(features, weights.weight[:, s].tolist(), strict=True)))
            missing = sum(f * w for f, w in zip(features, weights.unknown[:, s].tolist(), strict=True))
            raw, known = part.table[clicks[-1]].double().numpy(), part.known.numpy()
            own = (raw - raw[known].mean()) / raw[known].std()
            expected += np.where(known, weight * own, missing)
        rows.append(expected)
    return np.stack(rows)


@pytest.mark.parametrize("context", [True, False])
def test_fused_scores_are_those_of_a_loop_over_users_and_items(context: bool) -> None:
    model, batch = ensemble(context=context), users(12)
    found = model.adapt(batch.support)(batch.query)
    np.testing.assert_allclose(found.scores[:, 0].numpy(), written_out(batch, context=context), atol=1e-5)
    assert found.item_mask.tolist() == [False] + [True] * ITEMS == model.item_mask().tolist()


def test_pieces_users_and_exact_scores_are_those_of_the_whole() -> None:
    model, batch = ensemble(), users(12)
    whole = scored(model, batch)
    codes = torch.arange(1, SIZE).expand(12, -1)
    exact = whole.exact(codes)
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact.numpy(), written_out(batch)[:, 1:], atol=1e-5)
    pieces = torch.cat([whole.approximate(*bounds) for bounds in ((0, 7), (7, 8), (8, SIZE))], 1)
    assert torch.equal(pieces, whole.approximate(0, SIZE))
    for rows in (slice(0, 1), slice(3, 8)):
        alone = scored(model, EpisodeBatch(batch.user[rows], batch.support[rows], batch.query[rows]))
        for some in (whole[rows], alone):
            assert len(some) == rows.stop - rows.start and torch.equal(some.exact(codes[rows]), exact[rows])
            torch.testing.assert_close(some.approximate(0, SIZE), whole.approximate(0, SIZE)[rows])


def test_the_error_is_a_bound_and_a_small_one() -> None:
    model, batch = ensemble(), users(200, seed=1)
    for name, part in (("far off", 1e4), ("near", 0.0)):
        tables_ = tables()
        tables_["a"].table += part  # large beside its deviation
        moved = Ensemble(tables_, weights=random_weights())
        moved.warm = model.warm
        found = scored(moved, batch)
        codes = torch.arange(SIZE).expand(200, -1)
        gap = (found.approximate(0, SIZE).double() - found.exact(codes))[:, 1:].abs().amax(1)
        assert bool((gap <= found.error()).all()), name
    assert float(found.error().max()) < 1e-3


class Rough(Model):
    """Scores whose approximation is off by as much as it says."""

    def __init__(self, table: Table, off: float) -> None:
        self.table, self.off = table, off

    def item_mask(self) -> Tensor:
        return self.table.known

    def encode(self, support: Examples, query: Examples, **_: Any) -> UserState:
        found = self.table.score(query)
        return UserState({"given": found.scores[:, 0], "active": found.has_known_history[:, 0]})

    def scores(self, state: UserState) -> Scores:
        outer = self

        class Off(DenseScores):
            def approximate(self, start: int, stop: int) -> Tensor:
                return super().approximate(start, stop) + outer.off

            def error(self) -> Tensor:
                return super().error() + outer.off

        return Off(state.tensors["given"], self.item_mask())


def test_errors_of_the_parts_are_passed_on() -> None:
    parts = {name: Rough(table, 0.5) for name, table in tables().items()}
    model, batch = Ensemble(parts, weights=random_weights()), users(9)
    model.warm = WARM.numpy()
    found = scored(model, batch)
    gap = (found.approximate(0, SIZE).double() - found.exact(torch.arange(SIZE).expand(9, -1))).abs().amax(1)
    assert bool((gap <= found.error()).all()) and bool((gap > 0.01).all())


def test_moments_are_those_of_the_known_items_and_flat_parts_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec.recipes.ensemble_scores.PIECE", 50)  # many pieces
    batch = users(9)
    mean, deviation = scored(ensemble(), batch).moments()
    expected = written_out(batch)[:, 1:]
    np.testing.assert_allclose(mean, expected.mean(1), atol=1e-6)
    np.testing.assert_allclose(deviation, expected.std(1), rtol=1e-5)
    flat = tables()
    for table in flat.values():
        table.table = torch.full_like(table.table, 7.3)
    model = Ensemble(flat, weights=random_weights())
    model.weights.unknown.data.zero_()
    model.warm = WARM.numpy()
    assert scored(model, batch).moments()[1].eq(0).all()
    assert scored(model, batch).approximate(0, SIZE).abs().max() < 1e-5


def test_an_ensemble_inside_an_ensemble() -> None:
    batch, inner = users(12), ensemble()
    outer = Ensemble({"inner": inner, "d": Table(3, EVERY)}, weights=random_weights(("inner", "d")))
    assert np.array_equal(outer.warm, WARM.numpy())  # as the part says
    found = scored(outer, batch)
    own = written_out(batch)[:, 1:]
    z = (own - own.mean(1, keepdims=True)) / own.std(1, keepdims=True)
    other = Table(3, EVERY).score(batch.query).scores[:, 0, 1:].double().numpy()
    other = (other - other.mean(1, keepdims=True)) / other.std(1, keepdims=True)
    weight = outer.user_weights(outer.encode(batch.support, batch.query)).numpy()
    np.testing.assert_allclose(found.approximate(1, SIZE), weight[:, :1] * z + weight[:, 1:] * other, atol=1e-5)


def test_what_a_model_says_of_its_parts() -> None:
    calm, live = Popularity(UP), LivePopularity(WORLD, window=100)
    assert Ensemble({"a": calm}, UP).information == "upstream"
    assert Ensemble({"a": calm, "b": live}, UP).information == "live"
    late = Table(0, WARM, information="later", fitted_until=5e6, max_length=70, negatives=3)
    assert Ensemble({"a": calm, "b": live, "c": late}, UP).information == "later"
    both = Ensemble({"a": calm, "c": late}, UP)
    assert (both.fitted_until, both.max_length, both.negatives, both.learners) == (5e6, 70, 3, ("a", "c"))
    assert Ensemble({"b": live}, UP).fitted_until is None
    assert Ensemble({"inner": both}, UP).information == "later"
    assert (both.catalog, both.repeat_share) == (UP.catalog, UP.known_repeat_share)
    learner = sasrec.build(UP, dim=4)
    whole = Ensemble({"id": learner, "ease": EASE(UP)}, UP)
    assert {id(p) for p in learner.parameters()} < {id(p) for p in whole.parameters()}


@pytest.mark.parametrize("names", [[], ["a/b"], [""]])
def test_names_of_parts(names: list[str]) -> None:
    with pytest.raises(ValueError, match="Ensemble: "):
        Ensemble({name: Popularity(UP) for name in names}, UP)


def test_weights_are_of_the_same_parts_and_warm_items_are_known() -> None:
    with pytest.raises(ValueError, match=r"\['b'\].*\['a'\]"):
        Ensemble({"b": Popularity(UP)}, UP, weights=ContextWeights(["a"]))
    batch = users(2)
    with pytest.raises(ValueError, match="attach"):
        Ensemble(tables()).encode(batch.support, batch.query)


def test_states_are_small_and_taken_apart() -> None:
    batch = users(6)
    model = ensemble()
    state = model.encode(batch.support, batch.query)
    assert set(state.tensors) >= {"context", "active", "a/scores"} and state.part("a").tensors["scores"].shape == (
        6,
        SIZE,
    )
    torch.testing.assert_close(
        model.scores(state[2:4]).approximate(0, SIZE), model.scores(state).approximate(0, SIZE)[2:4]
    )
