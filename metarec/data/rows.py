"""Some of the interactions of a data set, and the weights of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Dataset
from metarec.data.weights import Weights


def take(data: Dataset, rows: NDArray[Any] | slice, **changed: Any) -> Dataset:
    """Some interactions, by mask or by number; of events of other kinds, all of the users who are left.

    Args:
        data: the interactions.
        rows: which.
        changed: other fields.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> len(take(data, data.time < 500_000, name="early")) == int((data.time < 500_000).sum())
        True
    """
    weight = None if data.weight is None else data.weight[rows]
    user, others = data.user[rows], data.others
    own: dict[str, Any] = {"user": user, "item": data.item[rows], "time": data.time[rows], "weight": weight}
    own["others"] = None if others is None else others.of_users(user)
    return replace(data, **{**own, **changed})


def joined_weights(parts: Sequence[Dataset]) -> Weights | None:
    """The weights of several data sets in a row, 1 where one has none; None where none has any."""
    if all(part.weight is None for part in parts):
        return None
    return np.concatenate([np.ones(len(part)) if part.weight is None else part.weight for part in parts])
