"""What becomes of a model at the end of a period: nothing, counts that move on, learning on, or a training anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from metarec.data.dataset import Dataset
from metarec.data.joining import followed_by
from metarec.learning import Learning
from metarec.model import Model

Step = Callable[[Model, Dataset, Dataset], Model]
"""From the model, the clicks of a period and all clicks before it, to the model of the next period."""


def frozen(model: Model, clicks: Dataset, before: Dataset) -> Model:
    """The model as it was."""
    return model


def counted(model: Model, clicks: Dataset, before: Dataset) -> Model:
    """The model whose counts have moved on by :meth:`metarec.Model.observe`; weights stay."""
    return copy.copy(model).observe(clicks)


def learned(how: Learning | None = None) -> Step:
    """The model that has learned on by :meth:`metarec.Model.learn`, with these settings."""
    return lambda model, clicks, before: model.learn(clicks, before=before, how=how)


def retrained(fit: Callable[[Dataset], Model]) -> Step:
    """A model fitted anew on all clicks until then."""

    def step(model: Model, clicks: Dataset, before: Dataset) -> Model:
        every = followed_by(before, clicks)
        return fit(replace(every, warm=np.bincount(every.item, minlength=every.catalog.size) > 0))

    return step
