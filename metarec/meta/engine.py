"""Interface of the engines of the inner loop, and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from metarec.meta.memory import bytes_per_user
from metarec.types import EpisodeBatch, Examples

Rate = float | Mapping[str, Tensor]


@dataclass(frozen=True)
class InnerLoop:
    """Settings of the inner loop: SGD on each user's own support loss.

    Attributes:
        objective: the inner loss, by the learner's name for it.
        steps: how many.
        rate: step size of all weights, or by parameter name (in the view) a tensor that broadcasts with the parameter;
            gradients of an outer loss reach such tensors.
        second_order: differentiate through the steps.
        outer: the outer loss, where nothing but its gradients at the adapted weights is asked for: an engine may then
            take the steps and the gradients in one pass.
    """

    objective: Any
    steps: int
    rate: Rate
    second_order: bool = False
    outer: Any = None


class Engine(Protocol):
    """Adapted weights of B users, who take their inner SGD steps in one batch.

    A user's weights are its own, so the sum of the users' losses has each user's gradient. Users can be continued: the
    :meth:`weights` of some are the ``start`` of others.

    Args:
        view: one user's task; what of it is a parameter adapts.
        users: B.
        start: weights (B, ...) that each user starts from, by parameter name in the view; the shared weights by
            default.

    Attributes:
        users: B.
    """

    users: int

    def __init__(self, view: nn.Module, users: int, start: Mapping[str, Tensor] | None = None) -> None: ...

    @classmethod
    def fits(cls, view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
        """Whether this engine computes exactly what the view computes, by such steps, from such weights."""
        ...

    @staticmethod
    def bytes_per_user(view: nn.Module, support: Examples, graph_steps: int, steps: int = 1) -> int:
        """Memory that adapting one user takes.

        Args:
            view: one user's task.
            support: of all users; its shape says how long they are.
            graph_steps: inner steps whose graphs are alive at once.
            steps: all inner steps.
        """
        return bytes_per_user(view, support, graph_steps)

    @staticmethod
    def lock(view: nn.Module) -> AbstractContextManager[Any]:
        """Held while users of a view adapt, where two threads would disturb each other."""
        return nullcontext()

    def __call__(self, method: str, examples: Examples, *args: Any) -> Any:
        """``view.method(examples, *args)`` of every user under its own weights; the result has a leading B."""
        ...

    def step(self, loss: Tensor, rate: Rate, second_order: bool = False) -> Self:
        """One SGD step of every user on the sum of their losses."""
        ...

    def steps(self, support: Examples, loop: InnerLoop) -> Self:
        """All SGD steps of every user on its own support loss."""
        users = self
        for _ in range(loop.steps):
            users = users.step(users("loss", support, loop.objective).sum(), loop.rate, loop.second_order)
        return users

    def query_gradients(
        self, part: EpisodeBatch, loop: InnerLoop, objective: Any, trained: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Query losses (B,) after the inner steps, and the gradients of their sum; what is left of self is undefined.

        Args:
            part: the B users.
            loop: the inner steps on their support.
            objective: the outer loss.
            trained: parameters.
        """
        total, losses = self.steps(part.support, loop).attached().query_losses(part.query, objective)
        return losses, list(torch.autograd.grad(total, trained, allow_unused=True))

    def query_losses(self, query: Examples, objective: Any) -> tuple[Tensor, Tensor]:
        """The sum of the outer losses, for its gradients, and the losses (B,)."""
        losses = self("loss", query, objective)
        return losses.sum(), losses

    def attached(self) -> Self:
        """After the last step: gradients of an outer loss reach the shared weights."""
        ...

    def detached(self) -> Self:
        """After the last step: plain values, which later changes of the shared weights do not reach."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The adapted weights by their name in the view, each (B, ...)."""
        ...


def takes_plain_steps(view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
    """Whether a loop takes first-order steps of one size, from shared weights or from values for all that adapts."""
    plain = not loop.second_order and not isinstance(loop.rate, Mapping)
    return plain and (
        not start
        or (
            start.keys() == dict(view.named_parameters()).keys()
            and not any(weights.requires_grad for weights in start.values())
        )
    )


def one_rate(rate: Rate, second_order: bool = False) -> float:
    """The inner learning rate as one number, for engines that take first-order steps of one size.

    Raises:
        ValueError: if there are several sizes, or second order is asked for.
    """
    if isinstance(rate, Mapping) or second_order:
        asked = "second-order steps" if second_order else "step sizes by parameter name"
        raise ValueError(
            f"this engine does not take {asked}; use metarec.meta.VmapUsers, or metarec.meta.choice.choose"
        )
    return rate
