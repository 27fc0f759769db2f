"""Learners that learn on: copies with weights of their own, in which items first clicked now get rows of their own."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.nn.record import version

T = TypeVar("T", bound=nn.Module)


def own_weights(module: T) -> T:
    """A copy with weights of its own; all else, such as the features of items, is shared.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> own = own_weights(layer)
        >>> _ = nn.init.zeros_(own.weight)
        >>> bool(layer.weight.any()), bool(own.weight.any())
        (True, False)
    """
    return _copied(module, {})  # type: ignore[no-any-return]


def _copied(part: Any, made: dict[int, Any]) -> Any:
    if part is None or id(part) in made:
        return made.get(id(part))
    kind: Any = type(part)
    out = kind.__new__(kind)
    made[id(part)] = out
    vars(out).update(vars(part))
    for weight in part._parameters.values():
        if weight is not None and id(weight) not in made:
            made[id(weight)] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    out._parameters = {name: made.get(id(weight)) for name, weight in part._parameters.items()}
    out._buffers = dict(part._buffers)
    out._modules = {name: _copied(inner, made) for name, inner in part._modules.items()}
    if vars(part).get("made") == version(part):
        out.made = version(out)
    return out


def begin_rows(learner: Any, new: NDArray[np.bool_]) -> None:
    """Let a learner know items that were first clicked now, in place.

    Their rows begin so that each has the vector that it had, be it generated or made from its features; of an item that
    was not known at all, the mean of those that were.

    Args:
        learner: a :class:`~metarec.nn.ModalityLearner`, a copy that nobody else has.
        new: (I,) bool, the items.
    """
    mask = torch.from_numpy(new).to(learner.candidates.device)
    if hasattr(learner.items, "begin_rows"):
        learner.items.begin_rows(mask, first_vectors(learner, mask))
    learner.candidates = learner.candidates | mask
    learner._found = []
    if learner.warm is not None:
        learner.warm = learner.warm | new


@torch.no_grad()
def first_vectors(learner: Any, new: Tensor) -> Tensor:
    """(I, D): the vectors of a learner's items, and the mean of those of its candidates where an item has none."""
    items, mode = learner.items, learner.items.training
    items.eval()
    table, known = items.table(), items.known
    items.train(mode)
    others = learner.candidates & known & ~new
    mean = table[others].mean(0) if bool(others.any()) else table.new_zeros(table.shape[1])
    return torch.where(known.unsqueeze(-1), table, mean)
