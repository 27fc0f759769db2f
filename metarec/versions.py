"""What is computed from a model's numbers, kept until one of them changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def tensors_of(model: object) -> Iterator[Tensor]:
    """All parameters, buffers and other tensors that a model and its members hold; shared ones more than once."""
    if isinstance(model, nn.Module):
        yield from _held(model)
    else:
        yield from (value for value in vars(model).values() if isinstance(value, Tensor))
    members = getattr(model, "members", None)
    for member in () if members is None else members().values():
        yield from tensors_of(member)


def _held(module: nn.Module) -> list[Tensor]:
    """As parameters() and buffers(), many times as fast."""
    found, parts = list[Tensor | None](), list[nn.Module | None]([module])
    for part in parts:  # which grow meanwhile
        if part is not None:
            found += (*part._parameters.values(), *part._buffers.values())
            parts += part._modules.values()
    return [tensor for tensor in found if tensor is not None]


def version(model: object) -> tuple[tuple[int, int], ...]:
    """Where a model's numbers are, and how often each tensor was changed; another one after every change."""
    return tuple([(tensor.data_ptr(), tensor._version) for tensor in tensors_of(model)])


_kept: weakref.WeakKeyDictionary[object, dict[str, tuple[object, Any, list[Tensor]]]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def kept(model: object, name: str, make: Callable[[], T]) -> T:
    """A value computed from a model's numbers, computed again once one of them has changed; never written to files.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> first = kept(layer, "double", lambda: 2 * layer.weight.detach())
        >>> kept(layer, "double", lambda: None) is first
        True
    """
    now = version(model)  # before the numbers are read: a change meanwhile makes the value out of date
    found = _kept.get(model, {}).get(name)
    if found is not None and found[0] == now:
        value: T = found[1]
        return value
    with _lock:
        read, made = list(tensors_of(model)), make()
        _kept.setdefault(model, {})[name] = (now, made, read)  # whose places in memory no other tensor takes meanwhile
    return made
