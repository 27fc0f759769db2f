"""The components of our ensemble as data: what each is called, which group it is in, and how it is fitted.

``mml_blend`` and the benchmarks select from ``COMPONENTS``; their settings are written here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from tqdm import tqdm

from metarec.data import Dataset, EpisodeSampler
from metarec.recipes import mml, sasrec
from metarec.recipes.config import MMLConfig
from metarec.recipes.ease import EASE
from metarec.recipes.inner_steps import select_inner_steps, with_inner_steps
from metarec.recipes.itemknn import ItemKNN
from metarec.recipes.mml import MML
from metarec.recipes.nested_validation import validation_split
from metarec.recipes.own_clicks import OwnClicks
from metarec.recipes.popularity import LivePopularity, Popularity
from metarec.recipes.profile_popularity import ProfilePopularity
from metarec.recipes.transitions import CoClicks, Transitions
from metarec.types import Method, Progress

CLICKS = 5  # last clicks of each validation user
Group = Literal["meta", "plain", "sum", "counts", "more", "profiles", "repeats", "live"]


@dataclass(frozen=True)
class Setup:
    """What a component is fitted with.

    Attributes:
        data: the clicks that it is fitted on.
        config: of MML; the other learners have its width.
        live: all clicks there are, on both sides of the split, for the group ``"live"``.
        day: how many units of the data's times are a day; by default as :meth:`metarec.Dataset.days` tells.
        sasrec_epochs: of every SASRec.
        seed: of weights and draws.
        device: where it is fitted and stays.
        label: before the names of the stages.
        validation: users whom nothing is fitted on, who select the inner steps if the config does not say them.
        listed: (I,) bool, the items that are ranked for them; all by default.
    """

    data: Dataset
    config: MMLConfig = field(default_factory=MMLConfig)
    live: Dataset | None = None
    day: float | None = None
    sasrec_epochs: int = 10
    seed: int = 0
    device: torch.device | str = "cpu"
    label: str = ""
    validation: Dataset | None = None
    listed: torch.Tensor | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """``"id"`` and the modalities."""
        chosen = self.config.modalities
        return ("id", *sorted(self.data.catalog.modalities if chosen is None else chosen))

    def days(self, count: float) -> float:
        """So many days, in the units of the data's times."""
        return self.data.days(count, self.day)

    @property
    def every_click(self) -> Dataset:
        """The clicks that are counted live.

        Raises:
            ValueError: if there are none.
        """
        if self.live is None:
            raise ValueError("components of the group 'live' need live=, all clicks there are")
        return self.live


Models = Mapping[str, Any]  # methods by name


@dataclass(frozen=True)
class Component:
    """A model, or several of one kind, and how they are fitted.

    Attributes:
        name: of the model, or of the kind.
        group: ``"meta"`` for MML's learners, ``"plain"`` for a SASRec each of ids and of every modality, ``"sum"`` for
            one of all of them, ``"counts"`` for what is counted upstream, ``"more"`` for further such counts,
            ``"profiles"`` for what reads profiles of users, ``"repeats"`` for those that speak where people click
            again, ``"live"`` for what is counted until the moment of the question.
        fit: the models by name.
        members: what ensembles are made of, from the fitted models; they themselves by default.
    """

    name: str
    group: Group
    fit: Callable[[Setup], Models]
    members: Callable[[Models], Models] = dict


def watch(training: Iterator[Progress], label: str) -> None:
    """Go through a training, each stage under its bar."""
    bar, stage = tqdm(disable=True), None
    try:
        for step in training:
            if step.stage != stage:
                bar.close()
                stage = step.stage
                bar = tqdm(total=step.epochs * step.total_users, desc=f"{label} {stage}", unit=" users")
            bar.update((step.epoch - 1) * step.total_users + step.users - bar.n)
    finally:
        bar.close()


def _mml(setup: Setup) -> Models:
    """MML through all stages of its training, with selected inner steps."""
    model = MML.build(setup.data, setup.config, seed=setup.seed, device=setup.device)
    watch(mml.train(model, EpisodeSampler(setup.data, seed=setup.seed)), f"{setup.label}, MML")
    if setup.config.test_steps is None and setup.validation is not None:
        steps = select_inner_steps(model, setup.validation, clicks=CLICKS, items=setup.listed)
        model = with_inner_steps(model, steps)
    return {"MML": model}


def _learners(models: Models) -> Models:
    """MML's adapted learners, with generators where the items have features."""
    methods = models["MML"].methods()
    names = {name: f"{name} + generator" for name in models["MML"].learners}
    return {f"MML {n}": methods[n] for n in (long if long in methods else short for short, long in names.items())}


def _sasrec(setup: Setup, inputs: Sequence[str]) -> Models:
    """A SASRec of the sum of some inputs; of several, one is left out for an item with a probability of .2."""
    name, drop = "SASRec " + "+".join(inputs), 0.2 if len(inputs) > 1 else 0.0
    learner = sasrec.build(setup.data, inputs, dim=setup.config.dim, drop_inputs=drop, seed=setup.seed)
    training = sasrec.train(learner.to(setup.device), setup.data, epochs=setup.sasrec_epochs, seed=setup.seed)
    watch(training, f"{setup.label}, {name}")
    return {name: learner}


def _plain(setup: Setup) -> Models:
    return {name: model for each in setup.inputs for name, model in _sasrec(setup, [each]).items()}


def _count(name: str, fit: Callable[[Setup], Method], group: Group = "counts") -> Component:
    return Component(name, group, lambda setup: {name: fit(setup)})


def _recent(setup: Setup) -> Method:
    return Popularity(setup.data, since=float(setup.data.time.max()) - setup.days(90))


def _decayed(setup: Setup) -> Method:
    return LivePopularity(setup.every_click, window=setup.days(10), half_life=setup.days(1))


def _live_transitions(setup: Setup) -> Method:
    return Transitions(setup.every_click, half_life=setup.days(3), live=True).to(setup.device)


COMPONENTS = (
    Component("MML", "meta", _mml, _learners),
    Component("SASRec", "plain", _plain),
    Component("SASRec of the sum", "sum", lambda setup: _sasrec(setup, setup.inputs)),
    _count("popularity, all", lambda setup: Popularity(setup.data)),
    _count("popularity, recent", _recent),
    _count("EASE", lambda setup: EASE(setup.data, penalty=500.0, device=torch.device(setup.device))),
    _count("transitions", lambda setup: Transitions(setup.data).to(setup.device)),
    _count("co-clicks", lambda setup: CoClicks(setup.data).to(setup.device)),
    _count("EASE, light", lambda setup: EASE(setup.data, penalty=100.0, device=torch.device(setup.device)), "more"),
    _count("item neighbours", lambda setup: ItemKNN(setup.data, device=setup.device), "more"),
    _count("neighbours of last clicks", lambda setup: ItemKNN(setup.data, decay=0.6, device=setup.device), "more"),
    _count("popularity by profile", lambda setup: ProfilePopularity(setup.data), "profiles"),
    _count("own clicks", lambda setup: OwnClicks(setup.data, seed=setup.seed), "repeats"),
    _count("popularity, live decay", _decayed, "live"),
    _count("transitions, live", _live_transitions, "live"),
    _count("co-clicks, live", lambda setup: CoClicks(setup.every_click, live=True).to(setup.device), "live"),
)


def of_groups(*groups: str) -> tuple[Component, ...]:
    """The components of some groups.

    Example:
        >>> [component.name for component in of_groups("live")]
        ['popularity, live decay', 'transitions, live', 'co-clicks, live']
    """
    return tuple(component for component in COMPONENTS if component.group in groups)


class Fitting:
    """Fits components on the earlier part of an upstream side, then on the whole of it.

    Inner steps that are selected on the earlier part are kept for the whole; what is counted live is counted once.

    Args:
        components: of ``COMPONENTS``, or like them.
        setup: with the whole upstream side as data.

    Example:
        >>> from metarec.datasets import planted
        >>> fitting = Fitting(of_groups("counts"), Setup(planted(users=60, items=40)))
        >>> list(fitting(fitting.setup.data))
        ['popularity, all', 'popularity, recent', 'EASE', 'transitions', 'co-clicks']
    """

    def __init__(self, components: Iterable[Component], setup: Setup) -> None:
        self.components, self.setup = tuple(components), setup
        self._live: dict[str, Models] = {}

    def __call__(self, data: Dataset) -> dict[str, Method]:
        """The members of all components, fitted on one side."""
        whole = data is self.setup.data
        validation = None if whole else validation_split(self.setup.data)[1]
        listed = torch.from_numpy(self.setup.data.warm)
        label = "whole" if whole else "earlier part"
        setup = replace(self.setup, data=data, validation=validation, listed=listed, label=label)
        out: dict[str, Method] = {}
        for component in self.components:
            models = self._live.get(component.name) or component.fit(setup)
            if component.group == "live":
                self._live[component.name] = models
            if component.group == "meta":
                self.setup = replace(self.setup, config=models["MML"].config)
            out |= component.members(models)
        return out
