"""Copies of everything that has a name: by copy.deepcopy and by pickle, equal at first and independent afterwards."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from metarec import MML, EpisodeSampler, MetaLearner, Recommender, as_model
from metarec.data import Catalog, Modality, Vocabulary
from metarec.recipes import EASE, CoClicks, Ensemble, ItemKNN, LivePopularity, Popularity, Transitions, sasrec
from metarec.recipes.anil import HeadLearner
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from tiny import CONFIG, DOWN, UP

CLICKS = ["item3", "item14", "item15"]
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


def model() -> MML:
    return MML.build(UP, CONFIG).eval()


def ensemble() -> Ensemble:
    methods = {"ease": EASE(UP), "mml": model(), "meta": model().meta("text")}
    return Ensemble(methods, UP)


METHODS: dict[str, Callable[[], Any]] = {
    "MML": model,
    "learner": lambda: model().learner("text"),
    "meta": lambda: model().meta("id"),
    "meta with graphs": lambda: model().training_meta("id"),
    "Meta-SGD": lambda: MetaSGD(model().learner("text"), lr=0.1),
    "ANIL": lambda: MetaLearner(HeadLearner(model().learner("text")), lr=0.1, steps=2),
    "MetaTL": lambda: MetaLearner(TransitionLearner(UP, dim=8), lr=0.1, steps=1, objectives=("softmax", "softmax")),
    "fusion": lambda: model().methods()["weight fusion"],
    "ensemble": ensemble,
    "SASRec": lambda: sasrec.build(UP, ("id", "text"), dim=8, layers=1),
    "LightGCN": lambda: LightGCN(UP, dim=8),
    "EASE": lambda: EASE(UP),
    "ItemKNN": lambda: ItemKNN(UP),
    "popularity": lambda: Popularity(UP),
    "live popularity": lambda: LivePopularity(UP, window=1e6),
    "transitions": lambda: Transitions(UP),
    "co-clicks": lambda: CoClicks(UP),
    "served": lambda: as_model(ensemble(), UP),
}


def scores(method: Any) -> Tensor:
    batch = next(EpisodeSampler(DOWN).epoch(0))
    modes = method.eval() if isinstance(method, nn.Module) else method
    with torch.no_grad():
        return modes.adapt(batch.support)(batch.query).scores  # type: ignore[no-any-return]


def tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor and array that a value leads to, arrays as tensors."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield torch.from_numpy(value)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from tensors(vars(value), seen)


def addresses(value: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors(value, set()) if t.numel()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_copied(name: str, way: str) -> None:
    method = METHODS[name]()
    expected = scores(method)
    other = WAYS[way](method)
    assert type(other) is type(method) and torch.equal(scores(other), expected)
    assert addresses(method) and not addresses(method) & addresses(other)
    if isinstance(method, nn.Module):
        assert list(method.state_dict()) == list(other.state_dict())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(torch.randn_like(parameter))
        assert torch.equal(scores(method), expected)
        assert name in ("transitions", "co-clicks", "ANIL", "MetaTL") or not torch.equal(scores(other), expected)


def test_a_copy_has_graphs_of_its_own() -> None:
    meta = model().training_meta("id")
    assert meta.graphs is not None
    meta.graphs.captured["a shape"] = None
    other = copy.deepcopy(meta)
    assert other.graphs is not None and other.graphs is not meta.graphs and other.graphs.captured == {}


def test_weights_are_averaged() -> None:
    first = model()
    mean = AveragedModel(first)
    mean.update_parameters(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(2.0)
    mean.update_parameters(first)
    for one, both in zip(first.parameters(), mean.module.parameters(), strict=True):
        assert torch.allclose(both, one - 1, atol=1e-5)
    served = Recommender(mean.module).adapt(CLICKS)
    assert len(served.recommend(k=5)) == 5


@pytest.mark.parametrize("way", WAYS)
def test_data_are_copied(way: str) -> None:
    catalog = Catalog(
        Vocabulary("ab"),
        {"text": Modality("text", torch.ones(3, 2), torch.arange(3) > 0)},
        {"title": ["A", "B"]},
        frozenset("b"),
    )
    other = WAYS[way](catalog)
    assert (other.items, dict(other.attributes), other.hidden) == (catalog.items, dict(catalog.attributes), {"b"})
    other["text"].features[1] = 9
    assert torch.equal(catalog["text"].features, torch.ones(3, 2))
    with pytest.raises(TypeError):
        other.attributes["title"] = []
    data = WAYS[way](DOWN)
    assert data.catalog.items == DOWN.catalog.items and np.array_equal(data.offsets, DOWN.offsets)
    data.item[:] = 1
    assert len(set(DOWN.item.tolist())) > 1
    sampler = EpisodeSampler(DOWN, seed=3, negatives=2)
    assert sampler.refused
    again = WAYS[way](sampler)
    for one, two in zip(sampler.epoch(1), again.epoch(1), strict=True):
        for a, b in zip(one.query.tensors(), two.query.tensors(), strict=True):
            assert torch.equal(a, b)
    assert dict(again.refused) == dict(sampler.refused)


@pytest.mark.parametrize("way", [*WAYS, "copy"])
@pytest.mark.parametrize("served", [False, True])
def test_a_recommender_and_its_users_are_copied(way: str, served: bool) -> None:
    recommender = Recommender(as_model(ensemble(), UP) if served else model())
    users = recommender.adapt([CLICKS, ["item7"]])
    if not served:
        recommender.add_items(["new"], text=UP.catalog["text"].features[4:5])
    recommender.remove_items(["item9"])
    expected = users.recommend(k=8)
    other, theirs = {**WAYS, "copy": lambda pair: (copy.copy(pair[0]), None)}[way]((recommender, users))
    theirs = other.adapt([CLICKS, ["item7"]]) if theirs is None else theirs
    assert theirs.recommender is other and other.catalog.hidden == {"item9"}
    assert theirs.recommend(k=8).ids.tolist() == expected.ids.tolist()
    other.remove_items([str(expected.ids[0, 0])])
    assert theirs.recommend(k=7).ids.tolist() != expected.ids[:, :7].tolist()
    assert users.recommend(k=8).ids.tolist() == expected.ids.tolist() and recommender.catalog.hidden == {"item9"}
    with pytest.raises(ValueError, match="adapt to them again"):
        other.rank(users)


def test_users_of_weights_that_changed_are_refused_by_a_copy_too() -> None:
    recommender = Recommender(model())
    user = recommender.adapt(CLICKS)
    with torch.no_grad():
        next(recommender.model.parameters()).add_(1)  # type: ignore[attr-defined]
    _, theirs = copy.deepcopy((recommender, user))
    with pytest.raises(ValueError, match="adapt to them again"):
        theirs.recommend(k=2)


def best(recommender: Recommender) -> list[str]:
    return [item.id for item in recommender.adapt(CLICKS).recommend(k=5)]


def test_a_recommender_works_in_another_process() -> None:
    recommender = Recommender(model())
    recommender.add_items(["new"], text=UP.catalog["text"].features[4:5])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(best, recommender).result() == best(recommender)
