"""New clicks, new items, users without history and files of an ensemble: all parts or none."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarec.data import split_by_time
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.model import Model, Saved, kind_of
from metarec.recipes import Ensemble
from metarec.recipes.context_weights import ContextWeights
from metarec.scoring import DenseScores, Scores, UserState
from metarec.types import Examples
from score_tables import EVERY, ITEMS, SIZE, Table, users

WORLD = planted(users=60, items=ITEMS)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)


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
    with pytest.raises(TypeError, match=r"part 'ease'"):
        Ensemble(
            {"first": Counter(UP), "ease": Table(0, EVERY)}, UP, weights=ContextWeights(["first", "ease"])
        ).add_items(added)


def test_a_user_without_history() -> None:
    model = counters()
    state = model.encode_empty()
    assert len(state) == 1 and not bool(state.active)
    clicks, cold, gap = state.tensors["context"][0].tolist()
    assert (clicks, cold) == (0, 0) and math.isnan(gap)
    assert model.scores(state).approximate(0, SIZE).isfinite().all()


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
        Ensemble.from_state(told, UP.catalog.add_items(Catalog(Vocabulary(["x"]))), np.append(UP.warm, False))
    flat = {**told.tensors, "usual": torch.zeros(2)}
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.from_state(replace(told, tensors=flat), UP.catalog, UP.warm)
