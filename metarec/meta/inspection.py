"""Checks of modules: what an engine may rely on, read from the modules themselves and never from a class's name.

A fast engine computes what a class is known to compute, from parameters that it keeps elsewhere. That is right only
while an object is what its class builds: no other part, no hook, no function of its own, no tied or frozen parameter.
Any other module is called as it is, by :class:`~metarec.meta.vmap.VmapUsers`.
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
EVERY_MODULE = frozenset(vars(nn.Module()))  # attributes that all modules have
NUMBERS = frozenset({"training", "p", "eps", "context_scale"})  # attributes that an engine reads, whatever their value
REGISTERED = ("_parameters", "_buffers", "_modules")
NOT_COMPARED = (*NUMBERS, *REGISTERED)
RENEWED = frozenset({"_flat_weights", "_flat_weight_refs"})  # lists of parameters that nn.RNNBase keeps up to date
PLAIN = (NoneType, bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device, Tensor)
Shapes = list[tuple[str, torch.Size | None]]
MANY = 64  # values in a list that are looked at one by one
LAYERS: dict[type, tuple[set[str], ...]] = {
    nn.Linear: ({"weight", "bias"}, {"weight"}),
    nn.LayerNorm: ({"weight", "bias"}, set()),
}  # with the parameters that users may have of their own
STATELESS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.Identity, nn.Dropout, nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh)


def as_built(module: nn.Module) -> bool:
    """Whether a module is what its class builds, but for the values of parameters and of ``NUMBERS``.

    The class must have a method ``unaltered`` of its own, which gives a new module of the same sizes. Compared are the
    exact types of all parts, the code of their forward passes, the attributes these read, and the parameters' shapes.
    """
    unaltered = vars(type(module)).get("unaltered")
    if unaltered is None:
        return False
    try:
        plan, parts = _blueprint(unaltered(module)), parts_of(module)
        return (
            len(parts) == len(plan)
            and all(map(_same, parts, plan))
            and len({part.training for part in parts}) == 1
            and all(map(_as_written, {type(part) for part in parts}))
        )
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False  # not even its sizes can be read


def separate(module: nn.Module) -> bool:
    """Whether an engine may keep a module's parameters elsewhere: none is tied, frozen, hooked or of a kind of its own.

    They have one type and one device, and no module has a hook.
    """
    parts = parts_of(module)
    edges = sum(child is not None for part in parts for child in vars(part)["_modules"].values())
    slots = slots_of(parts)
    ids = {id(p) for p in slots}
    return (
        edges == len(parts) - 1  # or a part is registered twice
        and len(ids) == len(slots)
        and not any(id(buffer) in ids for part in parts for buffer in part._buffers.values())
        and len({(p.dtype, p.device) for p in slots}) <= 1
        and all(map(_ordinary, slots))
        and not hooked(parts)
    )


def library_only(module: nn.Module) -> bool:
    """Whether all parts of a module are this library's or torch's own, as their classes are, without hooks."""
    parts = parts_of(module)
    homes = {type(part).__module__.partition(".")[0] for part in parts}
    return homes <= {"metarec", "torch"} and not hooked(parts) and all(map(_as_written, {type(p) for p in parts}))


def parts_of(module: nn.Module) -> list[nn.Module]:
    """A module and all of its parts, each once."""
    parts, seen = [module], {module}
    for part in parts:
        for child in vars(part)["_modules"].values():
            if child is not None:
                parts += [child] if child not in seen else ()
                seen.add(child)
    return parts


def slots_of(parts: list[nn.Module]) -> list[Tensor]:
    """The parameters of some modules, one by one."""
    return [p for part in parts for p in vars(part)["_parameters"].values() if p is not None]


def hooked(parts: list[nn.Module]) -> bool:
    """Whether any of some modules has a hook, or all modules have."""
    return _has_any_global_hook() or any(vars(part)[name] for part in parts for name in HOOKS)


def declared(module: nn.Module) -> bool:
    """Whether the very class of a module says that it takes users' parameters with a leading axis, ``broadcasts``.

    That is: any leading dimensions of the input, layers called as modules and not read, and no function of the object's
    own instead of one of the class.
    """
    kind = type(module)
    return "broadcasts" in vars(kind) and not any(hasattr(kind, name) and callable(v) for name, v in _own(module))


def stackable(module: nn.Module) -> bool:
    """Whether linear layers and layer norms may be exchanged for those of many users, in a tree that says so."""
    own = {name for name, p in module._parameters.items() if p is not None}
    kind = type(module)
    if kind in LAYERS:
        return own in LAYERS[kind] and not module._modules and _unpatched(module)
    if kind in STATELESS:
        return _unpatched(module) and all(map(stackable, module.children()))
    fits = declared(module) and own <= set(vars(kind)["broadcasts"])
    return fits and all(map(stackable, (m for m in module.children() if next(m.parameters(), None) is not None)))


def self_contained(module: nn.Module) -> bool:
    """Whether a copy of a module tree computes with the copy's parts alone.

    Not so if there is a hook, or an attribute that may lead back to the original: a function, a list of layers.
    """
    parts = parts_of(module)
    return not hooked(parts) and all(_is_plain(value) for part in parts for _, value in _own(part))


def holders(module: nn.Module, tensors: Container[int]) -> list[tuple[nn.Module, str, Any]]:
    """The lists, tuples and dicts in attributes that hold some tensors, given by ``id``: part, name and value."""
    return [(part, n, v) for part in parts_of(module) for n, v in _own(part) if _holds_any(v, tensors)]


def beyond_vmap(module: nn.Module) -> bool:
    """Whether ``vmap`` is known to fail on a module tree, or to pass over something in it without an error.

    Recurrent layers have no rule; hooks on gradients are not called; attention that does not train takes a path without
    a derivative, as it does not see that a gradient is wanted.
    """
    parts = parts_of(module)
    parts += [m for part in parts for _, value in _own(part) for held in _held(value) for m in parts_of(held)]
    return _has_any_global_hook() or any(
        isinstance(part, nn.RNNBase)
        or (isinstance(part, nn.MultiheadAttention) and not part.training)
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in parts
    )


def leads_back(module: nn.Module) -> str | None:
    """What a deep copy of a module would share with the original, by name: code that holds the original's parts."""
    for path, part in module.named_modules():
        hooks = ((name, hook) for name in HOOKS for hook in vars(part)[name].values())
        for name, code in (*_own(part), *hooks):
            if isinstance(code, FunctionType) and ((hasattr(type(part), name) and name not in HOOKS) or _holds(code)):
                return f"{path}.{name}".lstrip(".")
    return None


def _holds(function: FunctionType) -> bool:
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return any(isinstance(value, nn.Module | nn.Parameter) or callable(value) for value in cells)


def written_buffers(view: nn.Module) -> dict[str, Tensor]:
    """The buffers that a view's forward pass may write to, by name: not those of items, nor of declared classes."""
    own = ((n, m) for n, m in view.named_modules() if not (hasattr(m, "adapts_rows") or "broadcasts" in vars(type(m))))
    return {
        f"{name}.{key}".lstrip("."): buffer
        for name, part in own
        for key, buffer in part._buffers.items()
        if buffer is not None
    }


@lru_cache(maxsize=32)
def _blueprint(fresh: nn.Module) -> list[tuple[type, dict[str, Any], Shapes, Shapes, list[str]]]:
    """Of each part: its type, its attributes, shapes of parameters and buffers, and what its parts are called."""
    return [(type(part), _attributes(part), *_registered(part)) for part in parts_of(fresh)]


def _same(part: nn.Module, plan: tuple[type, dict[str, Any], Shapes, Shapes, list[str]]) -> bool:
    kind, attributes, parameters, buffers, children = plan
    own = vars(part)
    return (
        type(part) is kind
        and list(own["_modules"]) == children
        and _have(own["_parameters"], parameters)
        and _have(own["_buffers"], buffers)
        and _alike(kind, _attributes(part), attributes)
        and all(isinstance(own[name], int | float) for name in NUMBERS if name in own)
    )


def _alike(kind: type, found: dict[str, Any], built: dict[str, Any]) -> bool:
    """Whether a part has the attributes it was built with, and others only under names that its class does not read."""
    return {name: found[name] for name in built if name in found} == built and not any(
        hasattr(kind, name) for name in found.keys() - built.keys()
    )


def _have(tensors: dict[str, Tensor | None], shapes: Shapes) -> bool:
    if len(tensors) != len(shapes):
        return False
    for (name, tensor), (expected, shape) in zip(tensors.items(), shapes, strict=True):
        if name != expected or (tensor if tensor is None else tensor.shape) != shape:
            return False
    return True


def _attributes(part: nn.Module) -> dict[str, Any]:
    """All attributes but those registered and ``NUMBERS``; hooks among them."""
    found = vars(part).copy()
    for name in NOT_COMPARED:
        found.pop(name, None)
    return found


def _registered(part: nn.Module) -> tuple[Shapes, Shapes, list[str]]:
    parameters, buffers = (
        [(name, None if t is None else t.shape) for name, t in vars(part)[kind].items()] for kind in REGISTERED[:2]
    )
    return parameters, buffers, list(vars(part)["_modules"])


def _as_written(kind: type) -> bool:
    """Whether a class still has the forward pass that it was written with."""
    forward: Any = getattr(kind, "forward", None)
    home = next(c for c in kind.__mro__ if "forward" in vars(c))
    return (getattr(forward, "__module__", ""), getattr(forward, "__qualname__", "")) == (
        home.__module__,
        "_forward_unimplemented" if home is nn.Module else f"{home.__qualname__}.forward",
    )


def _unpatched(module: nn.Module) -> bool:
    return _as_written(type(module)) and not any(callable(value) for _, value in _own(module))


def _ordinary(parameter: Tensor) -> bool:
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.layout is torch.strided
        and not parameter._backward_hooks
        and not parameter._post_accumulate_grad_hooks
    )


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    """Attributes of the object that not every module has."""
    return [(n, v) for n, v in vars(module).items() if n not in EVERY_MODULE and n not in RENEWED]


def _held(value: Any) -> list[nn.Module]:
    """Modules in an attribute, registered or not."""
    values = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
    return [held for held in values if isinstance(held, nn.Module)]


def _holds_any(value: Any, tensors: Container[int], inside: bool = False) -> bool:
    values = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else None
    if values is None:
        return inside and isinstance(value, nn.Parameter) and id(value) in tensors
    return any(_holds_any(held, tensors, True) for held in values)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= MANY and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) <= MANY and all(map(_is_plain, value.values()))
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return str(value.__module__).partition(".")[0] == "torch" and not getattr(value, "__closure__", None)
    return type(value) in PLAIN
