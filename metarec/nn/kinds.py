"""Vectors of the kinds of events in a history: viewed, put into the cart, bought."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarec.nn.record import expect
from metarec.types import Examples


class EventKinds(nn.Module):
    """One trained vector per kind of event, which is added to that of the item.

    Args:
        size: K, kinds; the first is the one that is predicted.
        dim: D.

    Example:
        >>> kinds = EventKinds(size=3, dim=4)
        >>> kinds(torch.tensor([[0, 2]])).shape, list(kinds.frozen().parameters())
        (torch.Size([1, 2, 4]), [])
    """

    broadcasts = ()
    weight: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, kinds: Tensor) -> Tensor:
        """Vectors (..., D) of kinds (...)."""
        return F.embedding(kinds, self.weight)

    def settings(self) -> dict[str, int]:
        """What it is made with, for files."""
        return {"size": len(self.weight), "dim": self.weight.shape[1]}

    def frozen(self) -> EventKinds:
        """The same vectors, with their gradients but without parameters of their own."""
        out = copy.copy(self)
        out._parameters, out._buffers = {}, {"weight": self.weight}
        out._non_persistent_buffers_set = {"weight"}
        return out


def event_kinds(kinds: Sequence[str], dim: int, *stages: str) -> EventKinds | None:
    """Vectors of kinds of events by their names, which stages of training are to come for; None where there are none.

    Example:
        >>> event_kinds(("buy", "view"), 4).weight.shape, event_kinds((), 4)
        (torch.Size([2, 4]), None)
    """
    if not kinds:
        return None
    out = EventKinds(len(kinds), dim)
    expect(out, *stages)
    return out


def reading(learner: Any, examples: Examples) -> Examples:
    """The examples as a learner reads them, if it says so; see :meth:`metarec.nn.ModalityLearner.reading`.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.int64)
        >>> examples = Examples(one, 0 * one, one, one.unsqueeze(2), torch.ones(1, 1))
        >>> reading(object(), examples) is examples
        True
    """
    found: Examples = learner.reading(examples) if hasattr(learner, "reading") else examples
    return found


def reads_kinds(model: Any) -> bool:
    """Whether a model, or a member of it, reads events of other kinds than clicks.

    Example:
        >>> reads_kinds(EventKinds(2, 4)), reads_kinds(nn.Linear(2, 2))
        (True, False)
    """
    own = isinstance(model, nn.Module) and any(isinstance(part, EventKinds) for part in model.modules())
    return own or (hasattr(model, "members") and any(map(reads_kinds, model.members().values())))
