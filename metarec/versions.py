"""What is computed from a model's numbers, kept until one of them changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Self, TypeVar

from torch import Tensor, nn

T = TypeVar("T")
Versions = tuple[tuple[int, ...], tuple[int, ...]]  # data pointers, and how often each tensor was changed in place
_CHANGES = attrgetter("_version")


def tensors_of(model: object, *, buffers: bool = True) -> list[Tensor]:
    """All parameters, buffers and other tensors that a model and its members hold; shared ones may stand there twice.

    Args:
        model: a module or not.
        buffers: those besides parameters too.
    """
    parts = list[nn.Module | None]()
    if isinstance(model, nn.Module):
        found, parts = _held(model, buffers=buffers)
    else:
        found = [value for value in vars(model).values() if isinstance(value, Tensor)] if buffers else []
    members = getattr(model, "members", None)
    walked = set() if members is None else set(map(id, parts))
    for member in () if members is None else members().values():
        if id(member) not in walked:
            found += tensors_of(member, buffers=buffers)
    return found


def _held(module: nn.Module, *, buffers: bool) -> tuple[list[Tensor], list[nn.Module | None]]:
    """As parameters() and buffers(), many times as fast; and all modules inside."""
    found, parts = list[Tensor | None](), list[nn.Module | None]([module])
    for part in parts:  # which grow meanwhile
        if part is None:
            continue
        own = vars(part)
        if own["_parameters"]:
            found += own["_parameters"].values()
        if buffers and own["_buffers"]:
            found += own["_buffers"].values()
        if own["_modules"]:
            parts += own["_modules"].values()
    return [tensor for tensor in found if tensor is not None], parts


def version(model: object, *, buffers: bool = True) -> Versions:
    """Where a model's numbers are, and how often each tensor was changed; another one after every change.

    Args:
        model: a module or not.
        buffers: those besides parameters too.
    """
    return _versions(tensors_of(model, buffers=buffers))


def _versions(tensors: Iterable[Tensor]) -> Versions:
    each = list(tensors)
    return tuple(map(Tensor.data_ptr, each)), tuple(map(_CHANGES, each))


@dataclass(frozen=True, eq=False)
class Watched:
    """Tensors, with where their numbers were and how often they had been changed at one moment.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> watched = Watched.of(layer.parameters())
        >>> _ = nn.init.zeros_(layer.weight)
        >>> watched.is_same(), Watched.of(layer.parameters()).is_same()
        (False, True)
    """

    tensors: tuple[Tensor, ...]
    versions: Versions

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """As they are now, each once."""
        each = tuple({id(tensor): tensor for tensor in tensors}.values())
        return cls(each, _versions(each))

    def is_same(self) -> bool:
        """Whether none of them has changed."""
        return self.versions == _versions(self.tensors)


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
        return _keep(model, name, now, make)


def hand_on(before: object, after: object, name: str, change: Callable[[Any], T | None]) -> None:
    """Keep for one model what follows from a value that is kept for another, if that is not out of date.

    Args:
        before: has a value by this name, or not.
        after: a model that follows from it.
        name: of the value.
        change: gives the value of the one from that of the other, or None.

    Example:
        >>> one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> kept(one, "name", lambda: "first"), hand_on(one, two, "name", lambda name: name + ", then second")
        ('first', None)
        >>> kept(two, "name", lambda: "second")
        'first, then second'
    """
    with _lock:
        now = version(after)  # before the value is looked at: a change of numbers that both share counts against both
        found = _kept.get(before, {}).get(name)
        made = None if found is None or found[0] != version(before) else change(found[1])
        if made is not None:
            _keep(after, name, now, lambda: made)


def _keep(model: object, name: str, now: Versions, make: Callable[[], T]) -> T:
    read, made = tensors_of(model), make()
    _kept.setdefault(model, {})[name] = (now, made, read)  # whose places in memory no other tensor takes meanwhile
    return made
