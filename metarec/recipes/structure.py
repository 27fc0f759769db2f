"""Whether a model is what its settings and its catalogue make: only such a model can be built again from a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec.data.dataset import Catalog
from metarec.nn import ColdItemGenerator
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML

RECORDS = (
    "training",
    "fitted_until",
    "trained",
    "untrained",
    "made",
    "repeat_share",
    "second",
)  # no score depends on them
_QUIET = Lock()  # filters of warnings are the process's, not a thread's
_PLAIN = (bool, int, float, str, tuple, type(None))


def empty_model(
    catalog: Catalog, warm: NDArray[np.bool_], config: MMLConfig, fitted: int, neighbours: Tensor | None
) -> MML:
    """A model whose parameters are on the device ``meta``: they take no memory and have no values yet."""
    with torch.device("meta"):
        return MML(catalog, warm, config, fitted=fitted, neighbours=neighbours)


def neighbours_of(model: MML) -> Tensor | None:
    """The nearest warm items that a model's generators attend to, if it has any."""
    items = model.learner("id").items
    return items.neighbours if isinstance(items, ColdItemGenerator) else None


def difference(model: MML) -> str:
    """How a model differs from the one that its settings and its catalogue make, in words; "" if it does not.

    Weights may have any values. Compared are the parts and their classes, the names and shapes of the weights, which
    of them are shared, hooks, numbers such as ``heads``, and tensors that are made from the catalogue.
    """
    kinds, empty = {t.dtype for t in model.state_dict().values()}, [n for n, p in model.named_parameters() if p.is_meta]
    if empty:
        return f"weight {empty[0]!r} is on the device meta, without values"
    if len(kinds) > 1:
        return f"its weights are of several types, {sorted(map(str, kinds))}"
    near = neighbours_of(model)
    with _QUIET, warnings.catch_warnings():  # what there is to say of the features was said when the model was made
        warnings.simplefilter("ignore")
        twin = empty_model(model.catalog, model.warm, model.config, model.fitted, None if near is None else near.cpu())
    twin.to(kinds.pop())
    mine, theirs = (dict(each.named_modules(remove_duplicate=False)) for each in (model, twin))
    for name in _both(mine, theirs):
        if problem := _odd_name(name, mine, theirs, "part") or _odd_part(name, mine[name], theirs[name]):
            return problem
    own, expected = model.state_dict(), twin.state_dict()
    for name in _both(own, expected):
        if problem := _odd_name(name, own, expected, "weight"):
            return problem
        if own[name].shape != expected[name].shape:
            return f"weight {name!r} is {tuple(own[name].shape)}, its settings make {tuple(expected[name].shape)}"
    return _shared(model, twin) or _odd_buffer(model, twin)


def _both(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys([*mine, *theirs])


def _odd_name(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> str:
    if name in mine and name in theirs:
        return ""
    kind = type((mine if name in mine else theirs)[name]).__name__
    return f"its settings make {'no' if name in mine else 'a'} {what} {name!r} ({kind})"


def _odd_part(name: str, part: nn.Module, twin: nn.Module) -> str:
    """How a part differs from the one that would be built, its own parts and weights aside."""
    if type(part) is not type(twin):
        got, expected = (f"{type(each).__module__}.{type(each).__qualname__}" for each in (part, twin))
        return f"part {name!r} is a {got}, its settings make a {expected}"
    if part._forward_hooks or part._forward_pre_hooks:
        return f"part {name!r} has a forward hook, which a file cannot hold"
    for key in _both(vars(part), vars(twin)):
        value = vars(part).get(key)
        usual = vars(twin)[key] if key in vars(twin) else getattr(type(twin), key, value)
        if name and key not in RECORDS and _differs(value, usual):
            return f"part {name!r} has {key}={value!r}, its settings make {usual!r}"
    return ""


def _differs(value: object, usual: object) -> bool:
    if isinstance(value, _PLAIN) and isinstance(usual, _PLAIN):
        return value != usual
    return callable(value) != callable(usual) or (callable(value) and value is not usual)


def _shared(model: nn.Module, twin: nn.Module) -> str:
    """The first weight that is the same as another where it should not be, or is not where it should."""
    for name, first, expected in zip(_names(model), _firsts(model), _firsts(twin), strict=True):
        if first != expected:
            return f"weight {name!r} is tied to {first!r}, which a file cannot hold"
    return ""


def _names(model: nn.Module) -> list[str]:
    return sorted(name for name, _ in model.named_parameters(remove_duplicate=False))


def _firsts(model: nn.Module) -> list[str]:
    """For each parameter in the order of the names, the first name that it has."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    return [first.setdefault(id(parameters[name]), name) for name in _names(model)]


def _odd_buffer(model: nn.Module, twin: nn.Module) -> str:
    expected = dict(twin.named_buffers(remove_duplicate=False))
    pairs = {(id(b), id(expected[name])): name for name, b in model.named_buffers(remove_duplicate=False)}
    own = dict(model.named_buffers(remove_duplicate=False))
    for name in pairs.values():
        if not _alike(own[name].detach().cpu(), expected[name]):
            return f"tensor {name!r} is not what its catalogue makes"
    return ""


def _alike(own: Tensor, usual: Tensor) -> bool:
    """Whether tensors are equal, up to rounding."""
    if own.shape != usual.shape or own.dtype != usual.dtype:
        return False
    return torch.equal(own, usual) or (own.is_floating_point() and torch.allclose(own, usual))
