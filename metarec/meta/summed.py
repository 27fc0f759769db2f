"""Engines that call a learner for all users at once take the full softmax of all of them together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metarec.meta.engine import Engine
from metarec.nn import ModalityLearner, TableItems
from metarec.types import Examples

OWN = ("loss", "products", "states", "_states", "candidate_codes", "softmax_sum")  # what the loss is made of


class SummedLosses(Engine):
    """A base for engines whose copy of the view takes the examples of all users at once."""

    copy: Any

    def query_losses(self, query: Examples, objective: Any) -> tuple[Tensor, Tensor]:
        """The sum of the outer losses, for its gradients, and the losses (B,)."""
        if objective == "softmax" and takes_sums(self.copy):
            found: tuple[Tensor, Tensor] = self("softmax_sum", query)
            return found
        return super().query_losses(query, objective)


def takes_sums(view: nn.Module) -> bool:
    """Whether a view's full softmax is that of :class:`~metarec.nn.ModalityLearner`, over a table of items.

    Example:
        >>> from metarec.nn import IdItems, SequenceEncoder
        >>> learner = ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8))
        >>> takes_sums(learner.task_view("encoder")), takes_sums(learner.task_view("all"))
        (True, False)
    """
    kind = type(view)
    return (
        isinstance(view, ModalityLearner)
        and type(view.items) is TableItems
        and all(getattr(kind, name) is getattr(ModalityLearner, name) and name not in vars(view) for name in OWN)
    )
