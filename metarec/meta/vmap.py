"""The vmap engine, for any module: every adapting parameter gets a leading user axis."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import vmap

from metarec.meta.calling import Substituted, exclusive
from metarec.meta.engine import Engine, InnerLoop, Rate
from metarec.meta.inspection import beyond_vmap, written_buffers
from metarec.nn.kinds import reading
from metarec.types import Examples


class _Task:
    """One user's task, how it is called, and what its users have besides weights.

    Attributes:
        alone: whether users are called one after another, since ``vmap`` cannot run the module.
        buffers: then, of each user, what the module has written to.
    """

    def __init__(self, view: nn.Module) -> None:
        self.call = Substituted(view)
        self.shared = dict(view.named_parameters())
        self.written = written_buffers(view)
        self.alone = beyond_vmap(view)
        self.buffers: list[dict[str, Tensor]] = []

    def own_buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that a call may write to."""
        return {name: buffer.clone() for name, buffer in self.written.items()}


class VmapUsers(nn.Module, Engine):
    """B copies of a task view's parameters, stacked over users, called for all users at once.

    A copy starts as an expanded view of the shared parameter, so gradients of the stacked weights flow back to it,
    and a user's own tensors (touched rows) are stacked already. Parameters that are frozen (``requires_grad`` is False)
    stay as they are, and one that the view has under several names adapts as one.

    Only the forward pass runs under ``vmap``; gradients are taken outside, on the sum of the users' losses, which keeps
    second-order gradients right (``vmap`` around ``torch.func.grad`` gives wrong ones through layer norms) and lets
    learn2learn's ``MAML.adapt`` step all users together. What ``vmap`` cannot run (recurrent layers, ``.item()``,
    changes of buffers in place) is run for one user after another, with the same result. The view is called with one
    user's examples and a leading 1 either way, and is never changed.

    Args:
        view: one user's task; what of it is a parameter adapts.
        users: B.
        start: tensors (B, ...) that each user starts from, by parameter or buffer name; the shared ones by default.

    Raises:
        TypeError: if a part of the view is compiled by TorchScript.

    Example:
        >>> users = VmapUsers(nn.Linear(2, 1), users=3)
        >>> [tuple(p.shape) for p in users.parameters()]
        [(3, 1, 2), (3, 1)]
    """

    _task: _Task
    _names: dict[str, str]

    def __init__(self, view: nn.Module, users: int, start: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        own, task = dict(start or {}), _Task(view)
        trained = [name for name, p in task.shared.items() if p.requires_grad]
        weights = {n: own.pop(n) if n in own else task.shared[n].expand(users, *task.shared[n].shape) for n in trained}
        self._fill(
            task, users, {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()}, own
        )

    @classmethod
    def fits(cls, view: nn.Module, loop: InnerLoop, start: Mapping[str, Tensor]) -> bool:
        """True: it computes whatever a view does."""
        return True

    @staticmethod
    def lock(view: nn.Module) -> AbstractContextManager[Any]:
        """Held while users of a view adapt, if calls put users' weights into the view itself."""
        return exclusive(view)

    def _fill(self, task: _Task, users: int, weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        self.users = users
        self.fixed = dict(fixed)
        object.__setattr__(self, "_task", task)
        object.__setattr__(self, "_names", {name.replace(".", "/"): name for name in weights})
        for key, name in self._names.items():
            self._parameters[key] = weights[name]  # type: ignore[assignment]

    def adapting(self) -> dict[str, Tensor]:
        """The weights that steps move, by their name in the view, each (B, ...)."""
        return {name: self._parameters[key] for key, name in self._names.items()}  # type: ignore[misc]

    def weights(self) -> dict[str, Tensor]:
        """All weights by their name in the view, frozen ones too, each (B, ...)."""
        own = self.fixed | self.adapting()
        return {n: own[n] if n in own else p.expand(self.users, *p.shape) for n, p in self._task.shared.items()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """The same users with other weights."""
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made._fill(self._task, self.users, weights, self.fixed)
        return made

    def forward(self, method: str, examples: Examples, *args: Any) -> Any:
        """``view.method(examples, *args)`` of every user under its own weights.

        Args:
            method: a method of the view that takes one user's examples and returns tensors.
            examples: of B users.
            args: further arguments, the same for all.

        Returns:
            what the method returns, with a leading B.
        """
        own, task = self.fixed | self.adapting(), self._task
        tensors = reading(task.call.module, examples).tensors()
        if not task.alone:
            shared = task.own_buffers()

            def one(user: dict[str, Tensor], *given: Tensor) -> Any:
                return _first(task.call(shared | user, method, _alone(given), *args))

            try:
                return vmap(one, randomness="different")(own, *tensors)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # vmap has no rule for something in it, or it is wrong for one user too
                out = self._one_by_one(own, tensors, method, args)
                task.alone = True
                return out
        return self._one_by_one(own, tensors, method, args)

    def _one_by_one(
        self, own: Mapping[str, Tensor], tensors: tuple[Tensor, ...], method: str, args: tuple[Any, ...]
    ) -> Any:
        task, outs = self._task, []
        buffers = task.buffers or [task.own_buffers() for _ in range(self.users)]
        for user in range(self.users):
            mine = {name: tensor[user] for name, tensor in own.items()}
            given = _alone(tensor[user] for tensor in tensors)
            out, after = task.call.call(buffers[user] | mine, method, given, *args)
            buffers[user] = {name: after[name] for name in buffers[user]}
            outs.append(_first(out))
        task.buffers = buffers
        return _stacked(outs)

    def step(self, loss: Tensor, rate: Rate, second_order: bool = False) -> Self:
        """One SGD step of every user on the sum of their losses.

        Args:
            loss: the sum.
            rate: step size of all weights, or of each by its name.
            second_order: keep the graph of the gradients.

        Raises:
            ValueError: if a weight that adapts has no step size.
        """
        weights = self.adapting()
        if isinstance(rate, Mapping) and not weights.keys() <= rate.keys():
            raise ValueError(
                f"step sizes are missing for {sorted(weights.keys() - rate.keys())}; give all or one number"
            )
        if not weights or not loss.requires_grad:
            return self
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order, allow_unused=True)
        moved = zip(weights.items(), gradients, strict=True)
        return self.with_weights({n: w if g is None else _moved(w, g, n, rate) for (n, w), g in moved})

    def attached(self) -> Self:
        """Unchanged: the graph of the weights leads to the shared ones."""
        return self

    def detached(self) -> Self:
        """The same weights as plain values, without the graph that made them; later training does not reach them."""
        with torch.no_grad():
            values = {name: _value(w, self._task.shared[name]) for name, w in self.weights().items()}
            users = self.with_weights({name: values[name] for name in self.adapting()})
            users.fixed |= {name: value for name, value in values.items() if name not in self.adapting()}
        return users


def _moved(weights: Tensor, gradient: Tensor, name: str, rate: Rate) -> Tensor:
    """Users' weights after an SGD step."""
    if isinstance(rate, Mapping):
        return weights - rate[name] * gradient
    return torch.add(weights, gradient, alpha=-rate)


def _value(weights: Tensor, shared: Tensor) -> Tensor:
    """Users' weights without a graph, not in the memory of the shared ones."""
    mine = weights.detach()
    return mine[:1].clone().expand_as(mine) if mine.data_ptr() == shared.data_ptr() else mine


def _alone(tensors: Any) -> Examples:
    return Examples(*(tensor.unsqueeze(0) for tensor in tensors))


def _first(out: Any) -> Any:
    return out.squeeze(0) if isinstance(out, Tensor) else tuple(part.squeeze(0) for part in out)


def _stacked(outs: list[Any]) -> Any:
    one = isinstance(outs[0], Tensor)
    return torch.stack(outs) if one else tuple(torch.stack(parts) for parts in zip(*outs, strict=True))
