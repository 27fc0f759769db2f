"""ANIL: only the last layer adapts to a user; what comes before it is shared.

Source: Raghu et al., Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML, ICLR 2020. The
head is a linear layer between the encoder's states and the item vectors, which starts as the identity, so that a
trained learner keeps its scores. It is meta-trained as any learner is, by :func:`metarec.recipes.metalearned.maml`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from metarec.nn import ModalityLearner, record
from metarec.nn.learner import TOLD, Adapts


class HeadedEncoder(nn.Module):
    """An encoder with a linear layer, the head, behind it.

    Args:
        body: an encoder that takes positions, such as :class:`~metarec.nn.SequenceEncoder`.
        dim: D.
    """

    takes_positions = True
    broadcasts = ()

    def __init__(self, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(dim, dim)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """States (..., S, D) of histories (..., L, D), as the body takes them."""
        out: Tensor = self.head(self.body(x, keep, context, at))
        return out

    def head_alone(self) -> HeadedEncoder:
        """The same computation, with the head as the only parameters."""
        view = copy.copy(self)
        view._modules = {"head": self.head}
        object.__setattr__(view, "body", self.body)  # no submodule, so its parameters are shared by all users
        return view


class HeadLearner(ModalityLearner):
    """A learner of which only the head adapts, whatever its meta-learner asks for.

    Args:
        learner: its items and encoder are used, not copied.

    Example:
        >>> from metarec.nn import IdItems, SequenceEncoder
        >>> learner = HeadLearner(ModalityLearner(IdItems(size=6, dim=8), SequenceEncoder(dim=8)))
        >>> [name for name, _ in learner.task_view().named_parameters()]
        ['encoder.head.weight', 'encoder.head.bias']
    """

    broadcasts = ()
    linear = True

    def __init__(self, learner: ModalityLearner) -> None:
        encoder = HeadedEncoder(learner.encoder, learner.items.table().shape[1])
        encoder.head.to(next(learner.parameters()))
        record.expect(encoder.head)
        parts: dict[str, Any] = {"context": learner.context, "candidates": learner.candidates, "kinds": learner.kinds}
        super().__init__(learner.items, encoder, **parts)
        for name in TOLD:
            if name in vars(learner):
                setattr(self, name, vars(learner)[name])

    @property
    def max_length(self) -> int | None:
        """The longest history that the body takes, if it says so."""
        length: int | None = getattr(self.encoder.body, "max_length", None)
        return length

    def task_view(self, adapts: Adapts = "encoder") -> ModalityLearner:
        """The learner as one user's task, with the head as its parameters."""
        view = super().task_view("encoder")
        view.encoder = self.encoder.head_alone()  # type: ignore[operator]
        return view
