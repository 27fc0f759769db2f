"""One small model of every kind that can be saved, made anew at each call, shared by the tests of saving."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as pack
from torch import Tensor, nn

from metarec.data import EpisodeSampler
from metarec.files import checksum
from metarec.io import load
from metarec.meta import MetaLearner
from metarec.model import Model, dense
from metarec.nn import FeatureItems, IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes import (
    EASE,
    MML,
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
from tiny import CONFIG, DOWN, UP

SOFTMAX = ("softmax", "softmax")
Parts = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and header of a file


def spread(model: nn.Module, seed: int = 0) -> Any:
    """Weights far from the initial ones, so that scores, steps and their curvature are large."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def mml(seed: int = 0, **settings: Any) -> MML:
    """With three learners and their generators."""
    return spread(MML.build(UP, replace(CONFIG, **settings), seed=seed), seed)  # type: ignore[no-any-return]


def plain(*inputs: str) -> ModalityLearner:
    """A SASRec."""
    return spread(sasrec.build(UP, inputs, dim=8, layers=1, max_length=20, drop_inputs=0.2))  # type: ignore[no-any-return]


def adapted(learner: Any, **settings: Any) -> MetaLearner:
    """Under MAML, with steps that show."""
    return MetaLearner(learner, **{"lr": 0.1, "steps": 2, "engine": "native", **settings}).eval()


def raw_features() -> ModalityLearner:
    """Of features as the catalogue has them, and of others that it does not have."""
    own = replace(UP.catalog["text"], name="own", features=UP.catalog["text"].features.tanh())
    items, encoder = FeatureItems(UP.catalog["image"], 8), SequenceEncoder(8, max_length=17, layers=1, feedforward=12)
    return spread(ModalityLearner(items, encoder, context=FeatureItems(own, 8)).attach(UP))  # type: ignore[no-any-return]


def trained_features() -> ModalityLearner:
    """Features that are weights themselves."""
    items = FeatureItems(UP.catalog["text"], 8, train_features=True)
    return spread(ModalityLearner(items, SequenceEncoder(8, layers=1)).attach(UP))  # type: ignore[no-any-return]


def ensemble() -> Ensemble:
    """Members of one MML, MML itself, a learner twice, and counts; in another ensemble."""
    whole, learner = mml(), plain("id", "text")
    inner = Ensemble({"id": whole.meta("id"), "text": whole.meta("text"), "counts": Transitions(UP)}, UP)
    parts = {"MML": whole, "inner": inner, "sum": learner, "sgd": MetaSGD(learner, lr=0.1), "all": Popularity(UP)}
    out = Ensemble(parts, UP)
    with torch.no_grad():
        out.weights.weight += torch.randn(out.weights.weight.shape, generator=torch.Generator().manual_seed(0))
    return out.eval()


CASES: Mapping[str, Callable[[], Any]] = {
    "MML": mml,
    "MML of ids": lambda: mml(modalities=()),
    "SASRec of ids": lambda: plain("id"),
    "SASRec of text": lambda: plain("text"),
    "SASRec of the sum": lambda: plain("id", "image", "text"),
    "features as they are": raw_features,
    "features that are trained": trained_features,
    "MAML": lambda: mml().meta("id"),
    "MAML of everything": lambda: adapted(plain("id", "text"), adapts="all", second_order=True, memory_budget=1 << 25),
    "MAML without generator": lambda: mml().meta("image", generator=False),
    "MAML as it is trained": lambda: mml().training_meta("text"),
    "ANIL": lambda: adapted(spread(HeadLearner(mml().learner("id")))),
    "Meta-SGD": lambda: spread(MetaSGD(mml().learner("id"), lr=0.1, steps=2)),
    "Meta-SGD of a head": lambda: spread(MetaSGD(HeadLearner(plain("text")), lr=0.1)),
    "MetaTL": lambda: adapted(spread(TransitionLearner(UP, dim=8, margin=2.0)), objectives=SOFTMAX),
    "fused": lambda: mml().methods()["weight fusion"].attach(UP),  # type: ignore[attr-defined]
    "popularity": lambda: Popularity(UP),
    "live popularity": lambda: LivePopularity(UP, window=1e6, half_life=1e5),
    "own clicks": lambda: OwnClicks(UP),
    "EASE": lambda: EASE(UP),
    "ItemKNN": lambda: ItemKNN(UP),
    "transitions": lambda: Transitions(UP),
    "live transitions": lambda: Transitions(UP, half_life=1e5, live=True),
    "co-clicks": lambda: CoClicks(UP),
    "live co-clicks": lambda: CoClicks(UP, live=True),
    "LightGCN": lambda: spread(LightGCN(UP, dim=8)),
    "ensemble": ensemble,
}
MODULES = {name for name in CASES if name not in ("popularity", "live popularity", "own clicks", "EASE", "ItemKNN")}
LEARNERS = [name for name in CASES if name.startswith(("MML", "SASRec", "features", "MAML", "ANIL", "Meta", "fused"))]


@cache
def model_of(case: str) -> Any:
    """One for all tests that leave it as it is."""
    return CASES[case]()


def scores(model: Model) -> Tensor:
    """Of all cold users, adapted together, by the contract of models."""
    batch = next(EpisodeSampler(DOWN, part="test").epoch(0))
    with torch.no_grad():
        return dense(model, batch.support, batch.query).scores


def grown(model: Any) -> Any:
    """With two items more, one of them without features, and an item hidden."""
    from metarec.data import Catalog, Modality, Vocabulary

    text = Modality("text", torch.randn(3, 24, generator=torch.Generator().manual_seed(0)), torch.arange(3) > 1)
    added = Catalog(Vocabulary(["new", "newer"]), {"text": text})
    out = model.add_items(added)
    out.catalog = replace(out.catalog, hidden=frozenset({"item3", "new"}))
    return out


def own_items(size: int = 41) -> IdItems:
    """A table whose items are other ones than those that are warm."""
    return IdItems(size, 8, known=torch.from_numpy(np.arange(size) % 2 == 1))


def forge(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """A file with a right checksum."""
    text = json.dumps(header)
    path.write_bytes(pack(tensors, {"metarec": text, "sha256": checksum(tensors, text)}))
    return path


def refused(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """What is said of a forged file, which is not loaded."""
    with pytest.raises(ValueError, match=rf"{path.name}: ") as caught:
        load(forge(path, tensors, header))
    return str(caught.value)


def nodes(header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object with settings, of models and of their parts."""
    todo = list(header["models"])
    while todo:
        node = todo.pop()
        if not isinstance(node, dict):
            continue
        yield node
        inner = node["settings"] if set(node["settings"]) == {"settings", "parts"} else {}
        if inner:
            yield inner
        todo += [part for part in (inner or node)["parts"].values() if isinstance(part, dict)]
