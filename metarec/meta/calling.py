"""Functional calls: run a module's methods with other parameters and buffers, and leave it as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from metarec.meta.inspection import holders, self_contained

_ONE_AT_A_TIME = threading.RLock()


def exclusive(module: nn.Module) -> AbstractContextManager[Any]:
    """Lock of a module's parameters, against functional calls in other threads."""
    return nullcontext() if self_contained(module) else _ONE_AT_A_TIME


class Substituted:
    """Functional calls of a module's methods, with some of its parameters and buffers substituted.

    The tensors go into a copy of the module tree, so that no other caller reads them. Only where a copy might lead back
    to the original (a hook, a function as an attribute) do they go into the original itself: one call at a time, after
    which everything in it is as before.

    A tensor that the module has under several names is replaced under all of them, in lists and dicts too.

    Args:
        module: is not changed.

    Raises:
        TypeError: if a part is compiled by TorchScript: its parameters cannot be others. In a call: if it makes
            parameters of its own, which would be new ones each time.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> Substituted(layer)({"weight": torch.tensor([[1.0, 2.0]])}, "forward", torch.ones(2)).tolist()
        [3.0]
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.copies = self_contained(module)
        self.parts = list(module.modules())
        seen: dict[int, str] = {}
        self.places: dict[str, list[tuple[nn.Module, str, str]]] = {}
        for path, part in module.named_modules():
            if hasattr(part, "code") and hasattr(part, "graph"):
                raise TypeError(
                    f"{path or type(module).__name__}: TorchScript keeps its parameters to itself, so they cannot "
                    "adapt; give the module itself, before torch.jit.script"
                )
            for kind in ("_parameters", "_buffers"):
                for key, tensor in vars(part)[kind].items():
                    if tensor is not None:
                        name = seen.setdefault(id(tensor), f"{path}.{key}".lstrip("."))
                        self.places.setdefault(name, []).append((part, kind, key))
        self.names = seen
        self.holders = holders(module, seen)

    def __call__(self, tensors: Mapping[str, Tensor], method: str, *args: Any) -> Any:
        """``module.method(*args)`` with other tensors.

        Args:
            tensors: by the name of a parameter or buffer.
            method: of the module.
            args: of the method.
        """
        return self.call(tensors, method, *args)[0]

    def call(self, tensors: Mapping[str, Tensor], method: str, *args: Any) -> tuple[Any, dict[str, Tensor]]:
        """The same, and the tensors that are in their places afterwards."""
        with self._parts() as of:
            for name, tensor in tensors.items():
                for part, kind, key in self.places[name]:
                    vars(of(part))[kind][key] = tensor
            others = {number: tensors[name] for number, name in self.names.items() if name in tensors}
            for part, key, value in self.holders:
                vars(of(part))[key] = _exchanged(value, others)
            before = self._made(of)
            out = getattr(of(self.module), method)(*args)
            made = self._made(of) - before
            if made:
                raise TypeError(
                    f"{', '.join(sorted(made))}: made by the forward pass, so that each call of each user would have "
                    "new ones; make it in __init__, or call the learner once before it adapts"
                )
            places = {name: self.places[name][0] for name in tensors}
            return out, {name: vars(of(part))[kind].get(key) for name, (part, kind, key) in places.items()}

    def _made(self, of: Callable[[nn.Module], Any]) -> set[str]:
        """The parts and parameters that what stands for the module has, as ``Class.name``."""
        return {
            f"{type(part).__name__}.{key}"
            for part in self.parts
            for kind in ("_parameters", "_modules")
            for key, value in vars(of(part))[kind].items()
            if value is not None
        }

    @contextmanager
    def _parts(self) -> Iterator[Any]:
        """The module that is called in place of each part: a copy, or the part itself."""
        if self.copies:
            yield _copied(self.module).__getitem__
            return
        with _ONE_AT_A_TIME:
            before = [(part, _state(part)) for part in self.module.modules()]
            try:
                yield lambda part: part
            finally:
                for part, (attributes, registered) in before:
                    _restore(vars(part), attributes)
                    for name, entries in registered.items():
                        _restore(vars(part)[name], entries)


def _copied(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """A copy of each part of a module tree; their submodules are the copies."""
    copies: dict[nn.Module, nn.Module] = {}
    for part in module.modules():
        copies[part] = made = object.__new__(type(part))
        vars(made).update(vars(part))
        for name in ("_parameters", "_buffers"):
            vars(made)[name] = dict(vars(part)[name])
    for made in copies.values():
        vars(made)["_modules"] = {
            name: None if child is None else copies[child] for name, child in vars(made)["_modules"].items()
        }
    return copies


def _exchanged(value: Any, others: Mapping[int, Tensor]) -> Any:
    """A list, tuple or dict with others in place of some tensors, by ``id``."""
    if isinstance(value, dict):
        return {key: _exchanged(held, others) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_exchanged(held, others) for held in value)
    return others.get(id(value), value)


def _state(part: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    state = dict(vars(part))
    return state, {name: dict(state[name]) for name in ("_parameters", "_buffers", "_modules")}


def _restore(found: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in found.keys() - before.keys():
        del found[name]
    found.update(before)
