"""Everything that can score: the baselines, the components of ensembles, fitted once, and which ensembles there are."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from metarec.data import Dataset, EpisodeSampler
from metarec.data.examples import leave_last_out
from metarec.meta import MetaLearner
from metarec.nn import ModalityLearner
from metarec.recipes import mml, sasrec
from metarec.recipes.anil import HeadLearner
from metarec.recipes.components import COMPONENTS, Component, Models, Setup
from metarec.recipes.config import MMLConfig
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.ease import EASE
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.itemknn import ItemKNN
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metalearned import maml, reptile
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.recipes.mml import MML
from metarec.recipes.popularity import LivePopularity, Popularity
from metarec.recipes.transitions import Transitions
from metarec.types import Method, Progress


@dataclass(frozen=True)
class World:
    """One split of one data set.

    Attributes:
        everything: all clicks that may be counted live.
        up: the upstream side.
        down: the downstream side.
        device: where models are.
        day: a day in the units of the data.
    """

    everything: Dataset
    up: Dataset
    down: Dataset
    device: torch.device
    day: float


@dataclass(frozen=True)
class Settings:
    """How much is trained: all of it, or a fast run.

    Attributes:
        config: of MML.
        paper: of MML as released.
        sasrec_epochs: of every SASRec.
        everything: also what only a full run trains: the methods fitted on later clicks, and MML's other modes.
        positions: last clicks of each test user that are asked for.
    """

    config: MMLConfig
    paper: MMLConfig | None
    sasrec_epochs: int
    everything: bool
    positions: int = 1


def counted(world: World) -> dict[str, Callable[[float], Method]]:
    """Methods without random numbers, each a function of its one setting, which validation users choose."""
    up, device, end = world.up, world.device, float(world.up.time.max())
    return {
        "popularity, recent": lambda days: Popularity(up, since=end - days * world.day),
        "popularity, live": lambda days: LivePopularity(world.everything, window=days * world.day),
        "popularity, live decay": lambda days: LivePopularity(
            world.everything, window=10 * days * world.day, half_life=days * world.day
        ),
        "EASE": lambda penalty: EASE(up, penalty=penalty, device=device),
        "ItemKNN": lambda shrink: ItemKNN(up, shrink=shrink, device=device),
        "transitions, live": lambda days: Transitions(world.everything, half_life=days * world.day, live=True).to(
            device
        ),
    }


PLAIN = "SASRec id, softmax"
GRIDS = {
    "popularity, recent": (15.0, 30.0, 60.0, 90.0),
    "popularity, live": (1.0, 3.0, 7.0, 14.0),
    "popularity, live decay": (0.5, 1.0, 2.0, 4.0),
    "EASE": (100.0, 500.0),
    "ItemKNN": (5.0, 20.0),
    "transitions, live": (1.0, 3.0, 10.0),
}


def finish(steps: Iterator[Progress], label: str) -> None:
    """Go through a training and say how it ended."""
    began, last = time.perf_counter(), None
    for step in steps:
        last = step
    tqdm.write(f"{label}: {last}, {time.perf_counter() - began:.0f} s")


def trained_sasrec(
    world: World, data: Dataset, settings: Settings, seed: int, *, loss: sasrec.Loss = "softmax"
) -> ModalityLearner:
    """A SASRec of ids fitted on ``data``. Sampled losses learn more slowly, and get three times the epochs."""
    learner = sasrec.build(world.up, dim=settings.config.dim, seed=seed).to(world.device)
    epochs = settings.sasrec_epochs * (1 if loss == "softmax" else 3)
    steps = sasrec.train(learner, data, objective=loss, epochs=epochs, negatives=256, seed=seed)
    finish(steps, f"SASRec id {loss}")
    return learner


class Shared:
    """The components, each fitted once on either side, however many ensembles it is part of.

    Attributes:
        fitted: the models of each component by its name, of the last side that was asked for.
    """

    def __init__(self) -> None:
        self.fitted: dict[str, Models] = {}
        self._kept: dict[tuple[str, str], Models] = {}

    def of(self, *selected: str) -> tuple[Component, ...]:
        """The components of some groups, or by name."""
        return tuple(self._once(c) for c in COMPONENTS if c.group in selected or c.name in selected)

    def _once(self, component: Component) -> Component:
        def fit(setup: Setup) -> Models:
            key = component.name, setup.label
            if key not in self._kept:
                self._kept[key] = component.fit(setup)
            self.fitted[component.name] = self._kept[key]
            return self._kept[key]

        return replace(component, fit=fit)


def fine_tuned(learner: ModalityLearner) -> MetaLearner:
    """The ID learner with steps that move everything for each user."""
    return MetaLearner(learner, lr=0.05, steps=5, adapts="all", objectives=("softmax", "softmax"))


def three_of_one(world: World, settings: Settings, seed: int) -> dict[str, Method]:
    """An ensemble as large as the fusion, of one modality and with equal weights."""
    learners: dict[str, Method] = {
        f"{PLAIN} {number}": trained_sasrec(world, world.up, settings, 10 * seed + number) for number in range(3)
    }
    weights = ContextWeights(list(learners), context=False)
    return {"ensemble of three SASRec id": Ensemble(learners, world.up, weights=weights).to(world.device)}


def sampled(world: World, settings: Settings, seed: int) -> dict[str, Method]:
    """The ID learner under the losses that sample negatives."""
    losses: tuple[sasrec.Loss, ...] = ("sampled_softmax", "gbce", "bpr")
    return {f"SASRec id, {loss}": trained_sasrec(world, world.up, settings, seed, loss=loss) for loss in losses}


def others_upstream(world: World, settings: Settings, seed: int) -> dict[str, Method]:
    """LightGCN, and meta-learning without MML's other stages."""
    graph = LightGCN(world.up, seed=seed).to(world.device)
    finish(graph.train_on_edges(), "LightGCN")
    out: dict[str, Method] = {"LightGCN": graph}
    sampler = EpisodeSampler(world.up, seed=seed, users_per_batch=128, queries=0.5)
    for name, train, epochs in (("MAML, MeLU-style", maml, settings.sasrec_epochs), ("Reptile", reptile, 3)):
        learner = sasrec.build(world.up, seed=seed).to(world.device)
        if name == "Reptile":  # it moves the encoder alone, so it starts from trained items
            finish(sasrec.train(learner, world.up, epochs=settings.sasrec_epochs, seed=seed), "SASRec for Reptile")
        meta = MetaLearner(learner, lr=1e-2, steps=5, objectives=("softmax", "softmax"))
        finish(train(meta, sampler, epochs=epochs), name)
        out[f"{name}, adapted"], out[f"{name}, 0 steps"] = meta, learner
    return out | more_meta_learners(world, settings, seed)


def more_meta_learners(world: World, settings: Settings, seed: int) -> dict[str, Method]:
    """ANIL and Meta-SGD from the weights of a trained SASRec, and MetaTL, which starts from nothing."""
    start = trained_sasrec(world, world.up, settings, seed)
    sampler = EpisodeSampler(world.up, seed=seed, users_per_batch=128, queries=0.5, negatives=16)
    softmax = ("softmax", "softmax")
    head = HeadLearner(copy.deepcopy(start))
    metas: dict[str, tuple[MetaLearner | MetaSGD, int, float]] = {
        "ANIL": (MetaLearner(head, lr=1e-2, steps=5, objectives=softmax), 3, 1e-3),
        "Meta-SGD": (MetaSGD(copy.deepcopy(start), lr=1e-2, steps=5), 3, 1e-3),
    }
    for loss in ("softmax", "margin"):
        chain = TransitionLearner(world.up, dim=settings.config.dim, seed=seed).to(world.device)
        meta = MetaLearner(chain, lr=0.1, steps=1, objectives=(loss, loss))
        metas[f"MetaTL, {loss}"] = meta, settings.sasrec_epochs, 1e-3
    out: dict[str, Method] = {}
    for name, (learned, epochs, lr) in metas.items():
        finish(maml(learned, sampler, epochs=epochs, lr=lr), name)
        still = copy.copy(learned)
        still.steps = 0
        out[f"{name}, adapted"], out[f"{name}, 0 steps"] = learned, still
    return out


def fitted_later(world: World, settings: Settings, seed: int) -> dict[str, Method]:
    """The methods that learn from other cold users' later clicks: reported apart, never compared with the others."""
    known = leave_last_out(world.down, 2, least=3)
    both = joined(world.up, known)
    out: dict[str, Method] = {}
    for name, data in (("SASRec id, downstream only (down)", known), ("SASRec id, full_retrain", both)):
        apart = replace(world, up=replace(world.up, warm=data.warm | np.isin(np.arange(len(data.warm)), data.item)))
        learner = trained_sasrec(apart, data, settings, seed)
        learner.information = "later"  # type: ignore[assignment]
        out[name] = learner
    return out


def joined(first: Dataset, second: Dataset) -> Dataset:
    """The clicks of two data sets with different users, as one."""
    columns = [np.concatenate([getattr(first, n), getattr(second, n)]) for n in ("user", "item", "time")]
    order = np.argsort(columns[0], kind="stable")
    user, item, time = (column[order] for column in columns)
    return replace(first, user=user, item=item, time=time, name=f"{first.name} and {second.name}")


def trained_mml(world: World, config: MMLConfig, seed: int, label: str) -> MML:
    """MML fitted on the upstream side."""
    model = MML.build(world.up, config, seed=seed).to(world.device)
    finish(mml.train(model, EpisodeSampler(world.up, seed=seed)), label)
    return model


BLENDS = {  # beside mml_blend: groups or names of components, and whether the weights depend on the user
    "late fusion, fitted weights": (("plain",), False),
    "late fusion, gate": (("plain",), True),
    "late fusion with the sum, gate": (("plain", "sum"), True),
    "counts alone, gate (control)": (("counts",), True),
    "late fusion and counts, gate (control)": (("plain", "sum", "counts"), True),
    "MML blend of learners": (("meta", "sum"), True),
    "MML blend without a gate": (("meta", "sum", "counts"), False),
    "MML blend without the sum": (("meta", "counts"), True),
    "live late fusion, fitted weights": (("plain", "popularity, live decay"), False),
    "live late fusion, gate": (("plain", "popularity, live decay"), True),
    "live late fusion with the sum, gate": (("plain", "sum", "popularity, live decay"), True),
    "live counts alone, gate (control)": (("counts", "live"), True),
    "live late fusion and counts, gate (control)": (("plain", "sum", "counts", "live"), True),
    "live MML blend without a gate": (("meta", "sum", "counts", "live"), False),
}
"""The control is the MML blend with SASRec in the place of the meta-learners."""
