"""Ensemble of MML's learners and item counts: the best on cold users in our comparison.

MML's adapted learners (with generators) know what items look and read like, and serve cold items; a SASRec of ids and
features summed is the best single learner of warm ones; counts know what goes with what from the first click on. The
ensemble weighs them by how long a history is, how much of it is cold and how long the user was away, with weights
from nested temporal validation inside the upstream side. With ``live``, counts of everybody's clicks until the moment
of the question join in, and the information is ``"live"``.

The learners take inner steps for new users only where validation shows a gain (see
:func:`~metarec.recipes.inner_steps.select_inner_steps`), if ``config.test_steps`` does not say how many to take.

Everything is fitted twice: on the earlier part of the upstream side, to fit the weights, and on the whole of it. The
parts and their settings are ``COMPONENTS``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from metarec.data import Dataset
from metarec.recipes.components import CLICKS, Component, Fitting, Setup, of_groups
from metarec.recipes.config import MMLConfig
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.nested_validation import NestedValidation

GROUPS = ("meta", "sum", "counts")


def mml_blend(
    upstream: Dataset,
    config: MMLConfig | None = None,
    *,
    live: Dataset | None = None,
    day: float | None = None,
    sasrec_epochs: int = Setup.sasrec_epochs,
    seed: int = 0,
    device: torch.device | str = "cpu",
    components: Iterable[Component] | None = None,
) -> Ensemble:
    """Train an ensemble of MML and item counts; evaluate, save and serve it, or look at its ``members()``.

    Args:
        upstream: the upstream side of a split.
        config: of MML; default :class:`MMLConfig`.
        live: all clicks there are, on both sides of the split, if they may be counted up to each question's time.
        day: how many units of the data's times are a day; by default as :meth:`metarec.Dataset.days` tells.
        sasrec_epochs: of the SASRec of ids and features.
        seed: of weights and draws.
        device: where it is trained and stays.
        components: what it is made of; by default those of the groups ``"meta"``, ``"sum"`` and ``"counts"``, and
            ``"live"`` with live clicks.

    Raises:
        ValueError: as :func:`metarec.split_by_time` does, if too few users start late to validate with; as
            :meth:`metarec.Dataset.days` does, if nothing says how long a day is.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> up, down = split_by_time(planted(users=100, items=40), at=PLANTED_SPLIT)
        >>> quick = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=1)
        >>> ensemble = mml_blend(up, quick, sasrec_epochs=1)
        >>> ensemble.information, list(ensemble.members())[:2]
        ('upstream', ['MML id + generator', 'MML image + generator'])
    """
    if components is None:
        components = of_groups(*GROUPS, *([] if live is None else ["live"]))
    setup = Setup(upstream, config or MMLConfig(), live, day, sasrec_epochs, seed, device)
    setup.days(1)  # said before the training if at all
    return NestedValidation(upstream, Fitting(components, setup), clicks=CLICKS, device=device).ensemble()
