"""The low-rank engine: many users' first-order weights without a weight matrix per user."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from metarec.meta.adapted import DENSE_PAYS, AdaptedLinear, AdaptedNorm, AdaptedPart, Delta, kernels
from metarec.meta.engine import InnerLoop, Rate, one_rate, takes_plain_steps
from metarec.meta.inspection import separate, stackable
from metarec.meta.memory import activations, compared
from metarec.meta.summed import SummedLosses
from metarec.types import Examples

MATRIX = 2  # dimensions

Part = TypeVar("Part", bound=AdaptedPart)


class LowRankUsers(SummedLosses):
    """B users' first-order weights as the shared ones plus low-rank updates.

    Takes views that say so: the learner's class and that of its encoder name in ``broadcasts`` the parameters of their
    own that their forward passes also take with a leading user axis, maybe none; all others must sit in linear layers
    and in layer norms with scale and shift, which the forward passes call and do not read. See
    :mod:`metarec.meta.inspection`.

    Args:
        view: one user's task.
        users: B.
        start: weights (B, ...) that each user starts from, by name in the view: of all parameters, or of none.
    """

    def __init__(self, view: nn.Module, users: int, start: Mapping[str, Tensor] | None = None) -> None:
        self.users = users
        self.parts: dict[str, AdaptedPart] = {}
        self.own: list[tuple[nn.Module, Delta]] = []
        self.kernels = kernels(next(view.parameters()))
        self.copy: Any = self._copy(view, "")
        if start:
            for path, part in self.parts.items():
                part.start({name: start[path + name] for name in part.base})

    @classmethod
    def fits(cls, view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
        """Whether every part of a view says that it can be run so, and nothing in it was altered."""
        return takes_plain_steps(view, loop, start) and stackable(view) and separate(view)

    @staticmethod
    def bytes_per_user(view: nn.Module, support: Examples, graph_steps: int, steps: int = 1) -> int:
        """What adapting one user takes: the factors of all steps, or matrices, and the activations of one pass.

        Args:
            view: one user's task.
            support: of all users; its shape says how long they are.
            graph_steps: of no account here.
            steps: inner steps.
        """
        parameters, length = list(view.parameters()), support.history.shape[-1]
        own = sum(
            min(steps * length * sum(p.shape), int(DENSE_PAYS * p.numel())) if p.ndim == MATRIX else 3 * p.numel()
            for p in parameters
        )
        size: int = parameters[0].element_size() if parameters else 4
        return max(1, size * (own + activations(view, length, compared(support))))

    def _copy(self, module: nn.Module, path: str) -> nn.Module:
        """A copy of a module tree in which everything with parameters is the users' own."""
        if type(module) is nn.Linear:
            return self._part(path, AdaptedLinear(module, self.users))
        if type(module) is nn.LayerNorm and module.elementwise_affine:
            return self._part(path, AdaptedNorm(module, self.users))
        made: Any = copy.copy(module)
        made._modules = {n: None if m is None else self._copy(m, f"{path}{n}.") for n, m in module._modules.items()}
        if self.kernels and hasattr(made, "attend"):
            made.attend = self.kernels.attend
        own = {name: p for name, p in module._parameters.items() if p is not None}
        if own:
            made._parameters = {}
            self.own.append((made, self._part(path, Delta(self.users, **own))))
        out: nn.Module = made
        return out

    def _part(self, path: str, part: Part) -> Part:
        self.parts[path] = part
        return part

    def __call__(self, method: str, examples: Examples, *args: Any) -> Any:
        """``view.method(examples, *args)`` of every user under its own weights; the result has a leading B."""
        for module, delta in self.own:
            for name in delta.names:
                object.__setattr__(module, name, delta.value(name))
        return getattr(self.copy, method)(examples, *args)

    def steps(self, support: Examples, loop: InnerLoop) -> Self:
        """All SGD steps of every user on its own support loss; their factors get memory at once."""
        for part in self.parts.values():
            part.expected_steps = loop.steps
        return super().steps(support, loop)

    def step(self, loss: Tensor, rate: Rate, second_order: bool = False) -> Self:
        """One SGD step of every user on the sum of their losses."""
        rate = one_rate(rate, second_order)
        watched = [part.watched() for part in self.parts.values()]
        flat = [tensor for tensors in watched for tensor in tensors]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        for part, tensors in zip(self.parts.values(), watched, strict=True):
            part.step([next(gradients) for _ in tensors], rate)
        return self

    def attached(self) -> Self:
        """After the last step: gradients of an outer loss reach the shared weights."""
        for part in self.parts.values():
            part.mode = "graph"
        self._freeze()
        return self

    def detached(self) -> Self:
        """After the last step: plain values, which later changes of the shared weights do not reach."""
        for part in self.parts.values():
            part.mode = "values"
            part.base = {name: p.detach().clone() for name, p in part.base.items()}
        self._freeze()
        return self

    def _freeze(self) -> None:
        for part in self.parts.values():
            if isinstance(part, Delta):
                part.delta = {name: d.detach() for name, d in part.delta.items()}

    def weights(self) -> dict[str, Tensor]:
        """The adapted weights by their name in the view, each (B, ...)."""
        return {f"{path}{name}": w for path, part in self.parts.items() for name, w in part.weights().items()}
