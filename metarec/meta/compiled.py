"""The compiled engine: for CPUs, where all that adapts is an encoder that the C kernel knows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from metarec.meta.engine import InnerLoop, Rate, one_rate, takes_plain_steps
from metarec.meta.inspection import as_built, declared, parts_of, separate, slots_of
from metarec.meta.kernel import KernelEncoder, encoder_sizes
from metarec.meta.library import KERNEL, MOST_WIDE, OBJECTIVES, Pass, library
from metarec.meta.summed import SummedLosses
from metarec.types import EpisodeBatch, Examples


class CompiledUsers(SummedLosses):
    """B users' weights, each user's in one row that the compiled kernel reads.

    First order; second order too where it is asked for gradients alone, by losses that the library knows.

    Takes views on a CPU whose parameters all sit in one encoder: one that is just what its class builds, where that
    names the ``kernel`` that the library has. See :mod:`metarec.meta.inspection`.

    Args:
        view: one user's task.
        users: B.
        start: weights (B, ...) that each user starts from, by name in the view: of all parameters, or of none.
    """

    def __init__(self, view: nn.Module, users: int, start: Mapping[str, Tensor] | None = None) -> None:
        self.users = users
        ((self.path, base),) = _kernels(view)
        self.encoder = KernelEncoder(base, users)
        self.started = bool(start)
        if start:
            self.encoder.start({name.removeprefix(f"{self.path}."): weights for name, weights in start.items()})
        self.copy: Any = _replaced(view, base, self.encoder)

    @classmethod
    def fits(cls, view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
        """Whether a view is of the kind that the library computes, and the library is there."""
        if loop.second_order and (start or not loop.outer or not cls.knows(view, loop.objective, loop.outer)):
            return False
        if not takes_plain_steps(view, replace(loop, second_order=False), start):
            return False
        found = _kernels(view)
        if len(found) != 1 or library() is None or not declared(view):
            return False
        base = found[0][1]
        alone = len(slots_of(parts_of(view))) == len(slots_of(parts_of(base)))
        return alone and _of_a_kind(base) and as_built(base) and separate(view)

    @staticmethod
    def bytes_per_user(view: nn.Module, support: Examples, graph_steps: int, steps: int = 1) -> int:
        """What adapting one user takes: a row of weights and what the query pass saves.

        Args:
            view: one user's task.
            support: of all users; its shape says how long they are.
            graph_steps: of no account here.
            steps: likewise.
        """
        base = _kernels(view)[0][1]
        sizes = {**encoder_sizes(base), "length": support.history.shape[-1] + 1}  # a query reads a click more
        size: int = base.position.element_size()
        return size * sum(Pass(base.position, sizes, (), ()).sizes())

    def __call__(self, method: str, examples: Examples, *args: Any) -> Any:
        """``view.method(examples, *args)`` of every user under its own weights; the result has a leading B."""
        return getattr(self.copy, method)(examples, *args)

    def steps(self, support: Examples, loop: InnerLoop) -> Self:
        """All SGD steps of every user on its own support loss, in one pass if the library knows the loss."""
        if not loop.steps or not self.knows(self.copy, loop.objective):
            return super().steps(support, loop)
        with torch.no_grad():
            rate = one_rate(loop.rate, loop.second_order)
            self.encoder.descend(self.copy.products(support), loop.objective, loop.steps, rate)
        return self

    @staticmethod
    def knows(view: nn.Module, *objectives: str) -> bool:
        """Whether the library computes the view's losses too."""
        return all(objective in OBJECTIVES for objective in objectives) and _made_of_products(view)

    def query_gradients(
        self, part: EpisodeBatch, loop: InnerLoop, objective: Any, trained: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Query losses (B,) after the inner steps, and the gradients of their sum by what is trained.

        All in one pass if the library knows both losses; no user's weights are kept then.

        Args:
            part: the B users.
            loop: the inner steps on their support.
            objective: the outer loss.
            trained: parameters.
        """
        if self.started or not self.knows(self.copy, loop.objective, objective):
            return super().query_gradients(part, loop, objective, trained)
        with torch.set_grad_enabled(loop.second_order):
            support = self.copy.products(part.support)
        query, how = self.copy.products(part.query), (loop.steps, one_rate(loop.rate), loop.second_order)
        losses, pairs = self.encoder.learn(support, query, (loop.objective, objective), *how)
        reached, given = zip(*pairs, strict=True)
        return losses, list(torch.autograd.grad(reached, trained, given, allow_unused=True))

    def step(self, loss: Tensor, rate: Rate, second_order: bool = False) -> Self:
        """One SGD step of every user on the sum of their losses."""
        self.encoder.lr = one_rate(rate, second_order)
        torch.autograd.grad(loss, self.encoder.leaf, allow_unused=True)
        return self

    def attached(self) -> Self:
        """After the last step: gradients of an outer loss reach the shared weights, where users started from them."""
        self.encoder.mode = "values" if self.started else "graph"
        return self

    def detached(self) -> Self:
        """After the last step: plain values, which later changes of the shared weights do not reach."""
        self.encoder.mode = "values"
        return self

    def weights(self) -> dict[str, Tensor]:
        """The adapted weights by their name in the view, each (B, ...)."""
        return {f"{self.path}.{name}": value for name, value in self.encoder.weights().items()}


def in_kernel(learner: nn.Module, users: int) -> Any | None:
    """A copy of a learner whose encoder the library computes, for B users by the weights that they share.

    Args:
        learner: has an ``encoder``; gradients reach its parameters.
        users: B.

    Returns:
        the copy, or None where the library does not compute just this encoder.
    """
    encoder: Any = learner.encoder
    if library() is None or not computes(encoder):
        return None
    kernel = KernelEncoder(encoder, users)
    kernel.mode = "graph"
    return _replaced(learner, encoder, kernel)


def computes(encoder: nn.Module) -> bool:
    """Whether the library computes just this encoder: looked at in all of its parts, not only in its class."""
    known = vars(type(encoder)).get("kernel") == KERNEL
    return known and _of_a_kind(encoder) and as_built(encoder) and separate(encoder)


def _of_a_kind(encoder: nn.Module) -> bool:
    """Whether an encoder's numbers are of a kind and a size that the library takes."""
    first = next(encoder.parameters(), None)
    return (
        first is not None
        and first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and first.shape[-1] <= MOST_WIDE
    )


def _kernels(view: nn.Module) -> list[tuple[str, Any]]:
    """Modules of a view whose own class says that the library computes them, by name."""
    return [(name, module) for name, module in view.named_modules() if vars(type(module)).get("kernel") == KERNEL]


def _made_of_products(view: nn.Module) -> bool:
    """Whether the class that wrote the view's loss says what products it is made of."""
    writer = next(c for c in type(view).__mro__ if "loss" in vars(c))
    return "products" in vars(writer)


def _replaced(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """A copy of a module tree with one module exchanged."""
    if module is old:
        return new
    made = copy.copy(module)
    made._modules = {name: m and _replaced(m, old, new) for name, m in module._modules.items()}
    return made
