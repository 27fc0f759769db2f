"""What recommends best to cold users in our comparison: MML's learners and plain counts in one blend.

MML's adapted learners (with generators) know what items look and read like, and serve cold items; a SASRec of ids and
features summed is the best single learner of warm ones; counts know what goes with what from the first click on. A
:class:`~metarec.recipes.Blend` weighs them by how long a history is, how much of it is cold and how long the user was
away, with weights from a rehearsal inside the upstream side. With ``live``, counts of everybody's clicks until the
moment of the question join in, and the information is ``"live"``.

The learners take their steps for new users only where these paid in the rehearsal (see
:func:`~metarec.recipes.paying.paying_steps`), if ``config.test_steps`` does not say how many to take.

Everything is trained twice: on the earlier part of the upstream side, to fit the weights, and on the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tqdm import tqdm

from metarec.data import Dataset, EpisodeSampler
from metarec.nn import ModalityLearner
from metarec.recipes import mml, sasrec
from metarec.recipes.blend import Blend
from metarec.recipes.config import MMLConfig
from metarec.recipes.ease import EASE
from metarec.recipes.mml import MML
from metarec.recipes.paying import paying_steps, with_steps
from metarec.recipes.popularity import LivePopularity, Popularity
from metarec.recipes.rehearsal import rehearsal_split, rehearsed
from metarec.recipes.transitions import CoClicks, Transitions
from metarec.types import Method, Progress

DAY: float | None = None  # told from the data
RECENT = 90  # days before the split whose clicks count as recent
CLICKS = 5  # last clicks of each rehearsing user


def mml_blend(
    upstream: Dataset,
    config: MMLConfig | None = None,
    *,
    live: Dataset | None = None,
    day: float | None = DAY,
    sasrec_epochs: int = 10,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Blend:
    """A trained blend of MML and counts; evaluate it, or look into its ``methods``.

    Args:
        upstream: the upstream side of a split.
        config: of MML; default :class:`MMLConfig`.
        live: all clicks there are, on both sides of the split, if they may be counted up to each question's time.
        day: how many units of the data's times are a day; by default as :meth:`metarec.Dataset.days` tells.
        sasrec_epochs: of the SASRec of ids and features.
        seed: of weights and draws.
        device: where it is trained and stays.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late to rehearse with; as
            :meth:`metarec.Dataset.days` does, if nothing says how long a day is.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> quick = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=1)
        >>> blend = mml_blend(up, quick, sasrec_epochs=1)
        >>> blend.information, list(blend.methods)[:2]
        ('upstream', ['MML id + generator', 'MML image + generator'])
    """
    config = config or MMLConfig()
    upstream.days(1, day)  # said before the training if at all
    steps = config.test_steps
    counted_live = {} if live is None else _live(live, day, device)

    def make(data: Dataset) -> dict[str, Method]:
        nonlocal steps
        part = "whole" if data is upstream else "rehearsal"
        model = MML.build(data, config, seed=seed).to(device)
        _watch(mml.train(model, EpisodeSampler(data, seed=seed)), f"{part}, MML")
        if steps is None:
            steps = paying_steps(model, rehearsal_split(upstream)[1], clicks=CLICKS)
        name, whole = _sum(data, config, seed, device)
        _watch(sasrec.train(whole, data, epochs=sasrec_epochs, seed=seed), f"{part},")
        return {**_learners(with_steps(model, steps)), name: whole, **_counts(data, day, device), **counted_live}

    return rehearsed(upstream, make, clicks=CLICKS, device=device)


def _watch(training: Iterator[Progress], label: str) -> None:
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


def _learners(model: MML) -> dict[str, Method]:
    """MML's adapted learners, with generators where the items have features."""
    methods = model.methods()
    names = {name: f"{name} + generator" for name in model.learners}
    return {f"MML {n}": methods[n] for n in (long if long in methods else short for short, long in names.items())}


def _sum(data: Dataset, config: MMLConfig, seed: int, device: torch.device | str) -> tuple[str, ModalityLearner]:
    """An untrained SASRec of ids and features, and its name; of ids alone where there are no others."""
    modalities = sorted(data.catalog.modalities) if config.modalities is None else sorted(config.modalities)
    inputs = ("id", *modalities)
    drop = 0.2 if modalities else 0.0
    learner = sasrec.build(data, inputs, dim=config.dim, drop_inputs=drop, seed=seed).to(device)
    return "SASRec " + "+".join(inputs), learner


def _counts(data: Dataset, day: float | None, device: torch.device | str) -> dict[str, Method]:
    """What is counted upstream, by name."""
    return {
        "popularity, all": Popularity(data),
        "popularity, recent": Popularity(data, since=float(data.time.max()) - data.days(RECENT, day)),
        "EASE": EASE(data, penalty=500.0, device=torch.device(device)),
        "transitions": Transitions(data).to(device),
        "co-clicks": CoClicks(data).to(device),
    }


def _live(everything: Dataset, day: float | None, device: torch.device | str) -> dict[str, Method]:
    """What is counted until the moment of each question, by name."""
    length = everything.days(1, day)
    return {
        "popularity, live decay": LivePopularity(everything, window=10 * length, half_life=length),
        "transitions, live": Transitions(everything, half_life=3 * length, live=True).to(device),
        "co-clicks, live": CoClicks(everything, live=True).to(device),
    }
