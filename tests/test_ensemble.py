"""The ensemble against the fused score written out, user by user and item by item; and what a model can do."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarec.data import EpisodeSampler, split_by_time
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.model import Model, Saved, kind_of
from metarec.recipes import EASE, Ensemble, LivePopularity, Popularity, sasrec
from metarec.recipes.context_weights import ContextWeights
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import EpisodeBatch, Examples
from tables import EVERY, ITEMS, WARM, Table, random_weights, tables, users

WORLD = planted(users=60, items=ITEMS)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)
SIZE = ITEMS + 1


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
            weight = sum(f * w for f, w in zip(features, weights.weight[:, s].tolist(), strict=True))
            missing = sum(f * w for f, w in zip(features, weights.unknown[:, s].tolist(), strict=True))
            raw, known = part.table[clicks[-1]].double().numpy(), part.known.numpy()
            own = (raw - raw[known].mean()) / raw[known].std()
            expected += np.where(known, weight * own, missing)
        rows.append(expected)
    return np.stack(rows)


def scored(model: Model, batch: EpisodeBatch) -> Scores:
    return model.scores(model.encode(batch.support, batch.query))


@pytest.mark.parametrize("context", [True, False])
def test_fused_scores_are_those_of_a_loop_over_users_and_items(context: bool) -> None:
    model, batch = ensemble(context=context), users(12)
    found = model.adapt(batch.support)(batch.query)
    np.testing.assert_allclose(found.scores[:, 0].numpy(), written_out(batch, context=context), atol=1e-5)
    assert found.known.tolist() == [False] + [True] * ITEMS == model.item_mask().tolist()


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
        return UserState({"given": found.scores[:, 0], "active": found.active[:, 0]})

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
    with pytest.raises(ValueError, match="expected parts by names"):
        Ensemble({name: Popularity(UP) for name in names}, UP)


def test_weights_are_of_the_same_parts_and_warm_items_are_known() -> None:
    with pytest.raises(ValueError, match=r"\['b'\].*\['a'\]"):
        Ensemble({"b": Popularity(UP)}, UP, weights=ContextWeights(["a"]))
    batch = users(2)
    with pytest.raises(ValueError, match="attach"):
        Ensemble(tables()).encode(batch.support, batch.query)


class Counter(Model):
    """Counts clicks, of which none may come before those it has; takes in items."""

    def __init__(self, data: Dataset) -> None:
        self.attach(data)
        self.count = torch.from_numpy(np.bincount(data.item, minlength=data.catalog.size)).float()
        self.until = float(data.time.max())

    def item_mask(self) -> Tensor:
        return torch.arange(len(self.count)) > 0

    def encode(self, support: Examples, query: Examples, **_: Any) -> UserState:
        return UserState({"active": torch.ones(query.target.numel()) > 0})

    def encode_empty(self) -> UserState:
        return UserState({"active": torch.zeros(1) > 0})

    def scores(self, state: UserState) -> Scores:
        return DenseScores(self.count.expand(len(state), -1), self.item_mask())

    def observe(self, clicks: Dataset) -> "Counter":
        if clicks.time.min() < self.until:
            raise ValueError(f"clicks from {clicks.time.min()} on come before {self.until}")
        self.count = self.count + torch.from_numpy(np.bincount(clicks.item, minlength=len(self.count))).float()
        self.until = float(clicks.time.max())
        return self

    def add_items(self, added: Catalog) -> "Counter":
        out = copy.copy(self)
        out.count = nn.functional.pad(self.count, (0, len(added.items)))
        return out

    def state(self) -> Saved:
        return Saved({"until": self.until}, {"count": self.count})


def counters() -> Ensemble:
    first, second = Counter(UP), Counter(UP)
    second.until += 10
    return Ensemble({"first": first, "second": second}, UP)


def counts(model: Ensemble) -> list[float]:
    return [float(part.count.sum()) for part in model.members().values()]  # type: ignore[attr-defined]


def test_clicks_are_taken_by_all_parts_or_by_none() -> None:
    model = counters()
    before = counts(model)
    other = copy.copy(model)
    early = replace(DOWN, time=np.full_like(DOWN.time, int(UP.time.max()) + 5))
    with pytest.raises(ValueError, match="observe: part 'second'"):  # the first would have taken them
        model.observe(early)
    assert counts(model) == before
    assert model.observe(DOWN) is model
    assert counts(model) == [count + len(DOWN) for count in before] and counts(other) == before
    other.observe(DOWN)
    assert counts(other) == counts(model)


def test_items_are_added_by_all_parts_and_weights_stay() -> None:
    model, batch = counters(), users(5)
    model.weights.weight.data[0] = torch.tensor([0.3, 0.9])
    added = Catalog(Vocabulary(["new", "newer"]))
    grown = model.add_items(added)
    assert grown.catalog is not None and grown.catalog.size == SIZE + 2 and model.catalog is UP.catalog
    assert grown.warm is not None and grown.warm.tolist() == [*UP.warm.tolist(), False, False]
    assert len(grown.item_mask()) == SIZE + 2 and len(model.item_mask()) == SIZE
    assert grown.user_weights(grown.encode(batch.support, batch.query))[0].tolist() == pytest.approx([0.3, 0.9])
    with pytest.raises(TypeError, match=r"part 'ease'.*EASE|part 'ease'.*Wrapped"):
        Ensemble(
            {"first": Counter(UP), "ease": Table(0, EVERY)}, UP, weights=ContextWeights(["first", "ease"])
        ).add_items(added)


def test_a_user_without_history() -> None:
    model = counters()
    state = model.encode_empty()
    assert len(state) == 1 and not bool(state.active)
    clicks, cold, gap = state.tensors["context"][0].tolist()
    assert (clicks, cold) == (1, 0) and math.isnan(gap)
    assert model.scores(state).approximate(0, SIZE).isfinite().all()


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


def saved() -> Saved:
    model = counters()
    with torch.no_grad():
        model.weights.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.weights.until = 12.0
    return model.state()


def test_a_state_gives_the_same_ensemble() -> None:
    told, batch = saved(), users(5)
    assert kind_of("Ensemble") is Ensemble
    found = Ensemble.from_state(told, UP.catalog, UP.warm)
    again = found.state()
    assert again.settings == told.settings and list(again.parts) == ["first", "second"]
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in told.tensors.items())
    backwards = replace(told, parts=dict(reversed(told.parts.items())))
    for one in (found, Ensemble.from_state(backwards, UP.catalog, UP.warm)):
        state = one.encode(batch.support, batch.query)
        expected = Ensemble(dict(told.parts), UP, weights=found.weights)
        assert torch.equal(one.scores(state).approximate(0, SIZE), expected.scores(state).approximate(0, SIZE))
    late = replace(told, settings={**told.settings, "information": "later", "fitted_until": None})
    assert Ensemble.from_state(late, UP.catalog, UP.warm).state().settings == late.settings


BROKEN: dict[str, dict[str, Any]] = {
    "names": {"names": ["first", "third"]},
    "twice": {"names": ["first", "first"]},
    "one": {"names": ["first"]},
    "no list": {"names": "first"},
    "context": {"context": 1},
    "columns": {"context": False},
    "time": {"fitted_until": math.nan},
    "information": {"information": "live"},
}


@pytest.mark.parametrize("what", BROKEN)
def test_settings_of_a_file_are_not_trusted(what: str) -> None:
    told = saved()
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.from_state(replace(told, settings={**told.settings, **BROKEN[what]}), UP.catalog, UP.warm)


@pytest.mark.parametrize("name", ["weight", "unknown", "usual"])
@pytest.mark.parametrize(
    "change", [lambda t: t[..., :-1], lambda t: t * torch.nan, lambda t: None], ids=["few", "nan", "no"]
)
def test_tensors_of_a_file_are_not_trusted(name: str, change: Any) -> None:
    told = saved()
    tensors = {**told.tensors, name: change(told.tensors[name])}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.from_state(replace(told, tensors=tensors), UP.catalog, UP.warm)
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.from_state(told, UP.catalog.grown(Catalog(Vocabulary(["x"]))), np.append(UP.warm, False))
    flat = {**told.tensors, "usual": torch.zeros(2)}
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.from_state(replace(told, tensors=flat), UP.catalog, UP.warm)


def test_a_real_world_is_scored_as_it_was_by_hand() -> None:
    """Popularity, EASE and a learner, live popularity beside them, on episodes with several queries."""
    learner = sasrec.build(UP, ("id", "text"), dim=4).eval()
    parts = {"id": learner, "ease": EASE(UP), "popularity": Popularity(UP), "live": LivePopularity(WORLD, window=1e5)}
    model = Ensemble(parts, UP, weights=random_weights(tuple(parts)))
    batch = next(EpisodeSampler(DOWN, queries=3).epoch(0))
    with torch.no_grad():
        found = model.adapt(batch.support)(batch.query)
        weight, unknown = model.weights(model.encode(batch.support, batch.query).tensors["context"])
        total = torch.zeros(*batch.query.target.shape, SIZE, dtype=torch.float64)
        for s, part in enumerate(parts.values()):
            own = part.adapt(batch.support)(batch.query)
            raw = own.scores.double()
            z = (raw - raw[..., own.known].mean(-1, keepdim=True)) / raw[..., own.known].std(
                -1, correction=0, keepdim=True
            )
            given, silent = (table[:, s].view(*batch.query.target.shape, 1) for table in (weight, unknown))
            total += torch.where(own.known, given * z, silent)
    torch.testing.assert_close(found.scores.double(), total, atol=1e-5, rtol=1e-6)
