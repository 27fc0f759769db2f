"""Banks of models that items were added to, of which only the rows of these items are computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from numpy.typing import NDArray

from metarec.meta.bank import Bank
from metarec.meta.compiled_user import learner_of
from metarec.nn.frozen import check_vectors

T = TypeVar("T", bound=Bank)


def bank_after(before: T, models: Mapping[str, Any], warm: NDArray[Any] | None) -> T | None:
    """The bank of models that items were added to.

    Args:
        before: the bank of the models as they were.
        models: by the same names.
        warm: (I,) bool, items that a user without history may have clicked.

    Returns:
        None where the vectors of the new items cannot be computed alone.

    Raises:
        ValueError: if the vector of a new item is not finite.
    """
    longer = [_after(own, model) for own, model in zip(before.models, models.values(), strict=True)]
    if None in longer or warm is None:
        return None
    first, learners = len(before.known), [learner_of(model) for model in longer]
    for name, given, learner in zip(before.names, models.values(), learners, strict=True):
        catalog = learner_of(given).catalog
        ids = None if catalog is None else catalog.items.ids
        check_vectors(name, learner.items.table(), learner.items.known, ids, first)
    out = copy.copy(before)
    vectors, known = zip(*((own.items.table()[first:], own.items.known[first:]) for own in learners), strict=True)
    out.warm = warm
    out.hold(longer, before.tables.with_more(vectors, known))
    return out


def _after(frozen: Any, model: Any) -> Any:
    """A frozen model with the last items that another, which is not frozen, has; None where that cannot be."""
    learner = learner_of(model)
    if not hasattr(learner, "frozen_after"):
        return None
    own = learner.frozen_after(learner_of(frozen))
    if own is None or frozen is learner_of(frozen):
        return own
    out = copy.copy(frozen)
    out._modules = {**frozen._modules, "learner": own}
    return out
