"""Users without history: the average state after one likely click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec.functional import top_k
from metarec.nn.item_tables import ItemTables
from metarec.scoring import UserState
from metarec.types import Examples

FIRST_CLICKS = 1024  # warm items, evenly spaced, after which the next click is asked for
LIKELY = 256  # most likely next clicks, whose states are averaged for a user without clicks
AT_ONCE = 128  # states scored at once

Encode = Callable[[Examples, Examples], UserState]
Chances = Callable[[UserState], Tensor]


def empty_user(encode: Encode, chances: Chances, warm: NDArray[Any], negatives: int = 1) -> UserState:
    """The state of a user without clicks, N = 1: the average state after one click on a likely item.

    Nobody counts clicks here; what is likely is what the model itself expects next after any one click. Weighting by it
    matters: the plain average over all items ranks what people click first at half the recall of popularity.

    Args:
        encode: of the model.
        chances: of states, see :func:`chances_of`.
        warm: (I,) bool, items that may be clicked.
        negatives: of support examples.
    """
    each, share = likely_users(encode, chances, warm, negatives)
    active = each.tensors["active"].flatten(1) if each.tensors["active"].ndim > 1 else each.tensors["active"][:, None]
    weight = share.unsqueeze(-1) * active
    name = "scores" if "scores" in each.tensors else "state"
    values = each.tensors[name].view(*active.shape, -1)
    mean = (values * weight.unsqueeze(-1)).sum(0, keepdim=True) / weight.sum(0).clamp(min=1e-30).unsqueeze(-1)
    out = {n: t[:1, ..., :0] for n, t in each.tensors.items() if n in ("rows", "corrections")}
    out[name] = mean.view(1, *each.tensors[name].shape[1:])
    return UserState({"active": each.tensors["active"].any(0, keepdim=True), **out})


def likely_users(encode: Encode, chances: Chances, warm: NDArray[Any], negatives: int = 1) -> tuple[UserState, Tensor]:
    """Users of one click each on the items that the model expects most, and how likely these are, (n,)."""
    codes = np.flatnonzero(warm)
    some = codes[:: max(1, len(codes) // FIRST_CLICKS)]
    expected = chances(encode(*one_click_each(some, negatives)))[torch.from_numpy(codes)]
    share, likely = top_k(expected, min(LIKELY, len(expected)))
    return encode(*one_click_each(codes[likely.cpu().numpy()], negatives)), share


def one_click_each(codes: NDArray[Any], negatives: int) -> tuple[Examples, Examples]:
    """Support without examples and query of users who have clicked one item each.

    Example:
        >>> support, query = one_click_each(np.array([3, 5]), negatives=1)
        >>> support.weight.tolist(), query.history.tolist()
        ([[0.0], [0.0]], [[3], [5]])
    """
    history = torch.from_numpy(codes).long()[:, None]
    zero, none = torch.zeros_like(history), history.new_zeros(len(history), 1, negatives)
    weight = torch.ones(len(history), 1)
    return Examples(history, zero, zero, none, 0 * weight), Examples(history, zero, zero, none, weight)


@torch.no_grad()
def chances_of(tables: ItemTables, state: UserState) -> Tensor:
    """How likely each item is clicked next, (I,), on average over N users and their learners.

    The softmax of a learner's scores over the items that it knows and training knew.
    """
    own, fitted = state.tensors["state"], tables.fitted
    total = own.new_zeros(len(tables.rows))
    for learner in range(own.shape[1]):
        vectors, known = tables.vectors(learner)[:fitted], tables.known[:fitted, learner] > 0
        for states in own[:, learner].split(AT_ONCE):
            scores = (states @ vectors.T).masked_fill(~known, -torch.inf)
            total[:fitted] += scores.softmax(-1).nan_to_num().sum(0)
    return total / (len(own) * own.shape[1])
