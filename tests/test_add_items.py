"""New items for every model that can take them: old scores stay, new ones are those of their features or counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarec import MML, Dataset, MetaLearner, MMLConfig, ModalityLearner, Recommender, SequenceEncoder
from metarec.data import Catalog, EpisodeSampler, Modality, Vocabulary, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.model import Model, dense
from metarec.nn import FeatureItems, TableItems
from metarec.recipes import (
    EASE,
    CoClicks,
    Ensemble,
    ItemKNN,
    LivePopularity,
    OwnClicks,
    Popularity,
    Transitions,
    sasrec,
)
from metarec.recipes.anil import HeadLearner
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner

DATA = planted(users=120, items=40)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
BATCH = next(EpisodeSampler(DOWN, part="serving").epoch(0))
NEW = 2


def added(features: bool = True) -> Catalog:
    """Two items like items 3 and 8; the second one has no text."""
    present = torch.tensor([False, True, True])
    rows = {
        name: torch.cat([torch.zeros(1, m.dim), m.features[[3, 8]] + 0.1]) for name, m in UP.catalog.modalities.items()
    }
    shown = {name: present & (torch.arange(3) != 2 if name == "text" else True) for name in rows}
    found = {name: Modality(name, row * shown[name].unsqueeze(1), shown[name]) for name, row in rows.items()}
    return Catalog(Vocabulary(["new", "newer"]), found if features else {})


def shaken(model: Any) -> Any:
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def learner(*inputs: str) -> ModalityLearner:
    return shaken(sasrec.build(UP, inputs or ("id",), dim=8, layers=1))


def ensemble(data: Dataset, *, live: bool) -> Ensemble:
    parts: dict[str, Any] = {
        "learner": learner("id", "text"),
        "text": shaken(MML.build(UP, MMLConfig(dim=8))).meta("text"),
    }
    parts |= {"ease": EASE(UP), "popularity": Popularity(UP)}
    return Ensemble({**parts, **({"live": LivePopularity(data, window=50.0)} if live else {})}, UP)


MODELS: dict[str, tuple[Callable[[], Any], list[bool]]] = {  # and which of the two new items it knows
    "popularity": (lambda: Popularity(UP), [False, False]),
    "live popularity": (lambda: LivePopularity(DATA, window=50.0), [True, True]),
    "transitions": (lambda: Transitions(UP), [False, False]),
    "live transitions": (lambda: Transitions(DATA, half_life=20.0, live=True), [True, True]),
    "co-clicks": (lambda: CoClicks(UP), [False, False]),
    "own clicks": (lambda: OwnClicks(UP), [True, True]),
    "EASE": (lambda: EASE(UP), [False, False]),
    "ItemKNN": (lambda: ItemKNN(UP), [False, False]),
    "LightGCN": (lambda: shaken(LightGCN(UP, dim=8)), [False, False]),
    "ids": (learner, [False, False]),
    "text": (lambda: learner("text"), [True, False]),
    "sum": (lambda: learner("id", "image", "text"), [True, True]),
    "MAML": (lambda: MetaLearner(learner("text"), lr=0.1, steps=2, objectives=("softmax", "softmax")), [True, False]),
    "all adapts": (lambda: MetaLearner(learner("id", "text"), lr=0.1, steps=2, adapts="all"), [True, False]),
    "ANIL": (lambda: MetaLearner(HeadLearner(learner("text")), lr=0.1, steps=2), [True, False]),
    "Meta-SGD": (lambda: MetaSGD(learner("text"), lr=0.1, steps=2), [True, False]),
    "MetaTL": (
        lambda: MetaLearner(TransitionLearner(UP, dim=8), steps=1, objectives=("margin", "margin")),
        [False, False],
    ),
    "MML": (lambda: shaken(MML.build(UP, MMLConfig(dim=8))), [True, True]),
    "ensemble": (lambda: ensemble(DATA, live=False), [True, True]),
    "live ensemble": (lambda: ensemble(DATA, live=True), [True, True]),
}


@pytest.mark.parametrize("name", MODELS)
def test_old_items_score_as_before_and_new_ones_are_known_as_far_as_anything_is(name: str) -> None:
    make, knows = MODELS[name]
    model: Model = make()
    before, mask = dense(model, BATCH.support, BATCH.query).scores, model.item_mask().clone()
    larger = model.add_items(added())
    after = dense(larger, BATCH.support, BATCH.query).scores
    assert after.shape[-1] == DATA.catalog.size + NEW
    torch.testing.assert_close(after[..., :-NEW], before, rtol=1e-4, atol=1e-4)
    assert larger.item_mask().tolist() == [*mask.tolist(), *knows]
    assert larger.catalog is not None and larger.catalog.items.ids[-NEW:] == ("new", "newer")
    assert larger.warm is not None and not larger.warm[-NEW:].any() and len(larger.warm) == after.shape[-1]
    assert model.catalog is not None and model.catalog.size == DATA.catalog.size
    torch.testing.assert_close(dense(model, BATCH.support, BATCH.query).scores, before)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_computed_before_items_were_added_gives_what_is_computed_anew(name: str) -> None:
    model: Model = MODELS[name][0]()
    dense(model, BATCH.support, BATCH.query)  # item vectors are computed
    larger = model.add_items(added()).add_items(Catalog(Vocabulary(["third"])))
    anew = copy.deepcopy(larger)  # has nothing that was computed
    for pair in ((BATCH.support, BATCH.query), (BATCH.query, BATCH.support)):
        torch.testing.assert_close(dense(larger, *pair).scores, dense(anew, *pair).scores, rtol=1e-5, atol=1e-5)
    states = [own.scores(own.encode_empty()).approximate(0, DATA.catalog.size + NEW + 1) for own in (larger, anew)]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "sum", "MAML", "MML"])
def test_vectors_that_are_there_are_not_copied(name: str) -> None:
    model: Any = MODELS[name][0]()
    before = model.bank().tables
    larger = model.add_items(added())
    after = larger.bank().tables
    assert after.rows.data_ptr() == before.rows.data_ptr() and after.columns.data_ptr() == before.columns.data_ptr()
    assert len(before.rows) == DATA.catalog.size and model.bank().tables is before
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(1.5)
    assert larger.bank().tables.rows.data_ptr() != before.rows.data_ptr()  # a change of the weights is noticed
    state = larger.encode(BATCH.support, BATCH.query)
    anew = copy.deepcopy(larger)
    torch.testing.assert_close(
        larger.scores(state).approximate(0, 41), anew.scores(state).approximate(0, 41), rtol=1e-5, atol=1e-5
    )


class Shifting(FeatureItems):
    """Items whose vectors all change with the size of the catalogue."""

    def table(self) -> Tensor:
        return super().table() + len(self.known)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table()[ids]

    def frozen(self) -> Any:
        return TableItems(self.table(), self.known)


def test_items_of_a_class_of_ones_own_are_computed_anew() -> None:
    own = learner("text")
    own.items.__class__ = Shifting
    dense(own, BATCH.support, BATCH.query)
    larger = own.add_items(added())
    torch.testing.assert_close(
        dense(larger, BATCH.support, BATCH.query).scores,
        dense(copy.deepcopy(larger), BATCH.support, BATCH.query).scores,
    )
    vectors: Any = larger.bank()
    torch.testing.assert_close(vectors.tables.rows[3, :8], larger.items.table()[3])


def test_a_vector_is_the_projection_of_the_standardised_features() -> None:
    model = learner("image", "text")
    larger = model.add_items(added())
    expected: Tensor | float = 0.0
    for source, name in zip(model.items.sources, ("image", "text"), strict=True):  # type: ignore[union-attr,arg-type]
        given = UP.catalog[name].features[1:].double()
        mean = given.mean(0)
        row = ((added()[name].features[1].double() - mean) / (given - mean).square().sum(1).mean().sqrt()).float()
        expected = expected + source.projection(row)
    torch.testing.assert_close(larger.items.table()[-NEW], torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("live", [False, True])
def test_a_recommender_shows_what_the_model_can_rank(live: bool) -> None:
    recommender = Recommender(ensemble(DATA, live=live))
    users = recommender.adapt([["item3", "item14"], []])
    rows = {name: modality.features[1:].numpy() for name, modality in added().modalities.items()}
    if not live:
        with pytest.raises(ValueError, match=r"'bare' .*modality"):
            recommender.add_items(["bare"])
    recommender.add_items(["new"], {name: row[:1] for name, row in rows.items()})
    assert len(users.recommend(k=41).ids[1]) == 41 and "new" in users.recommend(k=41).ids[0]
    recommender.remove_items(["new"])
    assert "new" not in users.recommend(k=40).ids[0]
    recommender.restore_items(["new"])
    assert "new" in users.recommend(k=41).ids[0]
    if live:
        recommender.add_items(["bare"])
        recommender.observe({"user": ["u"] * 9, "item": ["bare"] * 9, "time": list(np.arange(9) + DATA.time.max())})
        assert {r.id: n for n, r in enumerate(users[1].recommend(k=42))}["bare"] < 41


class OwnItems(nn.Module):
    """Items of somebody's own."""

    adapts_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.known = torch.arange(DATA.catalog.size) > 0
        self.weight = nn.Parameter(torch.randn(DATA.catalog.size, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    def table(self) -> Tensor:
        return self.weight

    def scores(self, state: Tensor, ids: Tensor | None = None) -> Tensor:
        return state @ (self.weight if ids is None else self.weight[ids]).T

    def frozen(self) -> OwnItems:
        return self


def test_who_takes_no_items_in_is_named_before_anything_changes() -> None:
    own = ModalityLearner(OwnItems(), SequenceEncoder(dim=8)).attach(UP)
    with pytest.raises(TypeError, match="OwnItems"):
        own.add_items(added())
    model = Ensemble({"live": LivePopularity(DATA, window=50.0), "mine": own}, UP)
    recommender = Recommender(model)
    before = recommender.adapt(["item3"]).scores
    with pytest.raises(TypeError, match=r"'mine'.*OwnItems"):
        recommender.add_items(["new"])
    assert recommender.catalog is UP.catalog
    torch.testing.assert_close(recommender.adapt(["item3"]).scores, before)
