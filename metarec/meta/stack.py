"""Many users' weights as one module: every adapting parameter gets a leading user axis."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarec.types import Examples


def shell(module: nn.Module, found: dict[nn.Module, Any] | None = None) -> Any:
    """A module tree of its own around the same tensors, so that what is put into one tree no other thread sees."""
    found = {} if found is None else found
    if module not in found:
        found[module] = out = copy.copy(module)
        for name in ("_parameters", "_buffers"):
            setattr(out, name, dict(getattr(module, name)))
        out._modules = {name: part and shell(part, found) for name, part in module._modules.items()}
    return found[module]


class _Call(nn.Module):
    """Lets ``functional_call`` reach any method of a module, and hands back tensors only."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, examples: Examples, *args: Any) -> Any:
        return getattr(self.module, method)(examples, *args)


class TaskStack(nn.Module):
    """B copies of a task view's parameters, stacked over users, called for all users at once.

    A copy starts as an expanded view of the shared parameter, so gradients of the stacked weights flow back to it,
    and a user's own tensors (touched rows) are stacked already. Only the forward pass runs under ``vmap``; gradients
    are taken outside, on the sum of the users' losses, which keeps second-order gradients right
    (``vmap`` around ``torch.func.grad`` gives wrong ones through layer norms) and lets learn2learn's ``MAML.adapt``
    step all users together.

    Args:
        view: one user's task; what of it is a parameter adapts.
        users: B.
        own: tensors (B, ...) that each user has of its own from the start, by parameter or buffer name.

    Example:
        >>> stack = TaskStack(nn.Linear(2, 1), users=3)
        >>> [tuple(p.shape) for p in stack.parameters()]
        [(3, 1, 2), (3, 1)]
    """

    _call: _Call
    _names: dict[str, str]

    def __init__(self, view: nn.Module, users: int, own: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        own = dict(own or {})
        weights = {name: p.unsqueeze(0).expand(users, *p.shape) for name, p in view.named_parameters()}
        weights |= {name: t for name, t in own.items() if name in weights}
        weights = {name: w if w.requires_grad else w.requires_grad_() for name, w in weights.items()}
        self._fill(view, users, weights, {name: t for name, t in own.items() if name not in weights})

    def _fill(self, view: nn.Module, users: int, weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        self.users = users
        self.fixed = dict(fixed)
        object.__setattr__(self, "_call", _Call(view))
        object.__setattr__(self, "_names", {name.replace(".", "/"): name for name in weights})
        for key, name in self._names.items():
            self._parameters[key] = weights[name]  # type: ignore[assignment]

    def weights(self) -> dict[str, Tensor]:
        """The adapting weights by their name in the view, each (B, ...)."""
        return {name: self._parameters[key] for key, name in self._names.items()}  # type: ignore[misc]

    def with_weights(self, weights: Mapping[str, Tensor]) -> TaskStack:
        """The same users with other weights."""
        stack = TaskStack.__new__(TaskStack)
        nn.Module.__init__(stack)
        stack._fill(self._call.module, self.users, weights, self.fixed)
        return stack

    def forward(self, method: str, examples: Examples, *args: Any) -> Any:
        """``view.method(examples, *args)`` of every user under its own weights.

        Args:
            method: a method of the view that takes one user's examples and returns tensors.
            examples: of B users.
            args: further arguments, the same for all.

        Returns:
            what the method returns, with a leading B.
        """
        own = {f"module.{name}": tensor for name, tensor in (self.weights() | self.fixed).items()}
        call = _Call(shell(self._call.module))  # the users' weights are put into it while it runs

        def one(user: dict[str, Tensor], *tensors: Tensor) -> Any:
            return functional_call(call, user, (method, Examples(*tensors), *args))

        return vmap(one, randomness="different")(own, *examples.tensors())

    def step(self, loss: Tensor, lr: float, second_order: bool) -> TaskStack:
        """One SGD step of every user on the sum of their losses."""
        weights = self.weights()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order, allow_unused=True)
        moved = zip(weights.items(), gradients, strict=True)
        return self.with_weights({n: w if g is None else torch.add(w, g, alpha=-lr) for (n, w), g in moved})

    def detached(self) -> TaskStack:
        """The same weights as plain values, without the graph that made them."""
        with torch.no_grad():
            return self.with_weights({name: w.detach() for name, w in self.weights().items()})
