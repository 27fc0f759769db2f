"""Compare a module with the one rebuilt from its description: only if they agree can it be saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

RECORDS = ("training", "fitted_until", "trained", "untrained", "made", "repeat_share", "second", "information")
_PLAIN = (bool, int, float, str, tuple, type(None))


def difference(model: nn.Module, rebuilt: nn.Module) -> str:
    """How a module differs from the one that its description makes, in words; "" if it does not.

    Weights may have any values. Compared are the parts and their classes, the names and shapes of the weights, hooks,
    numbers such as ``heads``, and tensors that are made from the catalogue.

    Args:
        model: the module.
        rebuilt: as it would be built; its weights may be on the device ``meta``.
    """
    kinds = {t.dtype for t in model.state_dict().values()}
    if len(kinds) > 1:
        return f"its weights are of several types, {sorted(map(str, kinds))}"
    for kind in kinds:
        rebuilt.to(kind)
    mine, theirs = (dict(each.named_modules(remove_duplicate=False)) for each in (model, rebuilt))
    for name in _both(mine, theirs):
        if problem := _odd_name(name, mine, theirs, "part") or _odd_part(name, mine[name], theirs[name]):
            return problem
    own, expected = model.state_dict(), rebuilt.state_dict()
    for name in _both(own, expected):
        if problem := _odd_name(name, own, expected, "weight"):
            return problem
        if own[name].shape != expected[name].shape:
            return f"weight {name!r} is {tuple(own[name].shape)}, its settings make {tuple(expected[name].shape)}"
    return _odd_buffer(model, rebuilt)


def _both(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys([*mine, *theirs])


def _odd_name(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> str:
    if name in mine and name in theirs:
        return ""
    kind = type((mine if name in mine else theirs)[name]).__name__
    return f"its settings make {'no' if name in mine else 'a'} {what} {name!r} ({kind})"


def _odd_part(name: str, part: nn.Module, rebuilt: nn.Module) -> str:
    """How a part differs from the one that would be built, its own parts and weights aside."""
    if type(part) is not type(rebuilt):
        got, expected = (f"{type(each).__module__}.{type(each).__qualname__}" for each in (part, rebuilt))
        return f"part {name!r} is a {got}, its settings make a {expected}"
    if part._forward_hooks or part._forward_pre_hooks:
        return f"part {name!r} has a forward hook, which a file cannot hold"
    for key in _both(vars(part), vars(rebuilt)):
        value = vars(part).get(key)
        usual = vars(rebuilt)[key] if key in vars(rebuilt) else getattr(type(rebuilt), key, value)
        if key not in RECORDS and not (isinstance(value, Tensor) or key.startswith("__")) and _differs(value, usual):
            return f"part {name!r} has {key}={value!r}, its settings make {usual!r}"
    return ""


def _differs(value: object, usual: object) -> bool:
    if _is_plain(value) and _is_plain(usual):
        return value != usual
    if callable(value) != callable(usual):
        return True
    return callable(value) and not _same_function(value, usual)


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list) and all(isinstance(each, _PLAIN) for each in value))


def _same_function(value: object, usual: object) -> bool:
    code = getattr(value, "__code__", None)
    return value is usual or (code is not None and code is getattr(usual, "__code__", None))


def _odd_buffer(model: nn.Module, rebuilt: nn.Module) -> str:
    expected = dict(rebuilt.named_buffers(remove_duplicate=False))
    own = dict(model.named_buffers(remove_duplicate=False))
    pairs = {(id(b), id(expected[name])): name for name, b in own.items() if name in expected}
    for name in pairs.values():
        if not _alike(own[name].detach().cpu(), expected[name]):
            return f"tensor {name!r} is not what its catalogue makes"
    return next((f"its settings make no tensor {name!r}" for name in own if name not in expected), "")


def _alike(own: Tensor, usual: Tensor) -> bool:
    """Whether tensors are equal, up to rounding; those without values are as they should be."""
    if own.shape != usual.shape or own.dtype != usual.dtype:
        return False
    if usual.is_meta or torch.equal(own, usual):
        return True
    return own.is_floating_point() and torch.allclose(own, usual)
