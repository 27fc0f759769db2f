"""Serialise modules as plain JSON, and rebuild them: class, settings, parts.

A :class:`Kind` knows the modules of one class. :class:`Describing` goes through a module from the outside in and keeps
the tensors that no settings can say; :class:`Reading` goes through what a file says and believes none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn

from metarec.model import is_registered, kind_of
from metarec.saving.world import Scales, World, single
from metarec.types import Modality

DEPTH = 16  # of parts within parts


@dataclass(frozen=True)
class Kind:
    """How modules of a class are described and built.

    Attributes:
        describe: gives settings by name, plain JSON; parts by :meth:`Describing.part`.
        build: makes a module of a class, on the device ``meta``; its buffers have values.
    """

    describe: Callable[[Any, Describing], dict[str, Any]]
    build: Callable[[type[Any], Reading], nn.Module]


_KINDS: dict[type, Kind] = {}


def add_kind(cls: type, kind: Kind) -> None:
    """Let a kind know the modules of a class and of its subclasses."""
    _KINDS[cls] = kind


def knows(cls: type) -> Kind | None:
    """The kind of a class, that of its nearest base, or the one for classes that say their own ``settings()``."""
    for base in cls.__mro__:
        if "settings" in vars(base):
            return OWN
        if base in _KINDS:
            return _KINDS[base]
    return None


class Describing:
    """Serialises a module as plain JSON, part by part.

    Args:
        world: gives the catalogue's features, which are not said again.
        tensors: takes the tensors that are kept.
        path: of the module in the one that it began with, with a dot at the end.
    """

    def __init__(self, world: World, tensors: dict[str, Tensor], path: str = "", scales: Scales | None = None) -> None:
        self.world, self.tensors, self.path, self.scales = world, tensors, path, scales
        self.parts: dict[str, Any] = {}

    def whole(self, module: nn.Module) -> dict[str, Any]:
        """Class, settings and parts of a module.

        Raises:
            ValueError: if it is of a class that is not registered, or not as its class makes it; names it.
        """
        cls, where = type(module), f"part {self.path.removesuffix('.')!r}" if self.path else "it"
        kind = knows(cls)
        if kind is None or not is_registered(cls):
            lacks = " and give it settings(), the keyword arguments that it is made with" if kind is None else ""
            raise ValueError(
                f"{where} is a {cls.__module__}.{cls.__qualname__}, which is not registered; call "
                f"metarec.register({cls.__name__}){lacks}"
            )
        if self.path.count(".") > DEPTH:
            raise ValueError(f"{where} is nested more than {DEPTH} deep")
        try:
            settings = kind.describe(module, self)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{where} is no {cls.__name__} as its class makes it ({error})") from error
        return {"class": cls.__name__, "settings": settings, "parts": self.parts}

    def part(self, name: str, module: Any) -> None:
        """Describe a part; None for none."""
        inner = Describing(self.world, self.tensors, f"{self.path}{name}.", self.scales)
        self.parts[name] = None if module is None else inner.whole(module)

    def keep(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor that settings cannot say."""
        self.tensors[f"{self.path}{name}"] = tensor

    def features(self, name: str, given: Any) -> dict[str, Any]:
        """What features are called and where they come from: those of the catalogue are not kept.

        Args:
            name: under which they are kept otherwise.
            given: a modality, its features of any floating-point type.
        """
        features, present = given.features, given.present
        catalog = self.world.catalog
        for scales in (self.scales, None):
            names = [n for n in catalog.modalities if scales is None or n in scales]
            for chosen in ([name] for name in names) if len(names) < 2 else ([*names], *([n] for n in names)):
                if sum(catalog[n].dim for n in chosen) != features.shape[1]:
                    continue
                if _same(self.world.features(chosen, scales), features, present):
                    return {"named": given.name, "modalities": chosen, "standardised": scales is not None}
        self.keep(name, features)
        self.keep(f"{name}.present", present)
        return {"named": given.name, "modalities": [], "standardised": False}


def _same(usual: Modality, features: Tensor, present: Tensor) -> bool:
    own, expected = features.detach().cpu(), usual.features.to(features.dtype)
    right = own.shape == expected.shape and torch.equal(present.cpu(), usual.present)
    return right and (torch.equal(own, expected) or torch.allclose(own, expected))


class Reading:
    """Rebuilds a module from its description in a file, and checks every setting.

    Args:
        world: gives the catalogue.
        tensors: of the whole module, by name.
        said: class, settings and parts.
        path: of this part, with a dot at the end.
        scales: by which the enclosing learner's features are standardised.

    Attributes:
        taken: names of tensors that are no weights.

    Raises:
        ValueError: if it says something else.
    """

    def __init__(self, world: World, tensors: Mapping[str, Tensor], said: object, path: str = "") -> None:
        if not isinstance(said, Mapping) or set(said) != {"class", "settings", "parts"}:
            raise ValueError(f"{path or 'it'}: expected class, settings and parts, got {short(said)}")
        self.name, self.settings, self.parts = said["class"], said["settings"], said["parts"]
        if not (isinstance(self.name, str) and isinstance(self.settings, Mapping) and isinstance(self.parts, Mapping)):
            raise ValueError(f"{path or 'it'}: expected a name and two objects, got {short(said)}")
        if path.count(".") > DEPTH:
            raise ValueError(f"{path} is nested more than {DEPTH} deep")
        world.part()
        self.world, self.tensors, self.path = world, tensors, path
        self.scales: Scales | None = None
        self.taken: set[str] = set()
        self._asked: set[str] = set()

    def module(self) -> nn.Module:
        """The module, its weights on the device ``meta``.

        Raises:
            ValueError: if it cannot be built, or settings or parts are left that nobody asked for.
        """
        cls = kind_of(self.name)
        kind = knows(cls)
        if kind is None or not issubclass(cls, nn.Module):
            raise ValueError(f"{self.path}: {self.name} is no part that a file can name")
        try:
            out = kind.build(cls, self)
        except (ValueError, RuntimeError):
            raise
        except Exception as error:  # whatever a constructor of somebody's own may raise
            raise ValueError(f"{self.path}{self.name}: {error}") from error
        if unknown := sorted({*self.settings, *self.parts} - self._asked):
            raise ValueError(f"{self.path}{self.name}: unknown settings {short(unknown)}; a newer metarec wrote them")
        return out

    def setting(self, name: str) -> Any:
        """A setting as it is said."""
        self._asked.add(name)
        if name not in self.settings:
            raise ValueError(f"{self.path}{self.name}: {name} is missing")
        return self.settings[name]

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number between bounds."""
        value = self.setting(name)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{self.path}{name} must be a whole number from {low} to {high}, got {short(value)}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        """A number between bounds."""
        value = self.setting(name)
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{self.path}{name} must be a number from {low:g} to {high:g}, got {short(value)}")
        number: float = value
        return number

    def choice(self, name: str, among: Sequence[Any]) -> Any:
        """One of several values."""
        value = self.setting(name)
        if not any(value is one or (type(value) is type(one) and value == one) for one in among):
            raise ValueError(f"{self.path}{name} must be one of {list(among)}, got {short(value)}")
        return value

    def names(self, name: str) -> list[str]:
        """A list of names, each once."""
        return names(self.setting(name), f"{self.path}{name}")

    def part(self, name: str) -> Any:
        """A part, built; None if there is none."""
        self._asked.add(name)
        if name not in self.parts:
            raise ValueError(f"{self.path}{self.name}: part {short(name)} is missing")
        if self.parts[name] is None:
            return None
        inner = Reading(self.world, self.tensors, self.parts[name], f"{self.path}{name}.")
        inner.scales, inner.taken = self.scales, self.taken
        return inner.module()

    def has(self, name: str) -> bool:
        """Whether the file has such a tensor for this part."""
        return f"{self.path}{name}" in self.tensors

    def tensor(self, name: str, dtype: torch.dtype | None, *shape: int | None) -> Tensor:
        """A tensor that is no weight; of a floating-point type if ``dtype`` is None, and any size where a size is."""
        name = f"{self.path}{name}"
        self.taken.add(name)
        if name not in self.tensors:
            raise ValueError(f"tensor {name!r} is missing")
        found = self.tensors[name].detach().cpu()
        right = found.is_floating_point() if dtype is None else found.dtype == dtype
        fits = len(found.shape) == len(shape) and all(s in (None, n) for s, n in zip(shape, found.shape, strict=False))
        if not (right and fits):
            raise ValueError(f"{name} must be {dtype or 'real'} of shape {shape}, got {found.dtype} {found.shape}")
        return single(found)

    def known(self, name: str) -> Tensor:
        """(I,) bool, some of the items."""
        out = self.tensor(name, torch.bool, self.world.catalog.size)
        if bool(out[0]):
            raise ValueError(f"{self.path}{name} must not hold the padding")
        return out

    def features(self, name: str, said: object) -> Modality:
        """Features as :meth:`Describing.features` says them."""
        if not isinstance(said, Mapping) or set(said) != {"named", "modalities", "standardised"}:
            raise ValueError(f"{self.path}{name} must name modalities, got {short(said)}")
        chosen, scaled = names(said["modalities"], f"{self.path}{name}"), said["standardised"]
        named = names([said["named"]], f"{self.path}{name}: named")[0]
        if not chosen:
            present = self.tensor(f"{name}.present", torch.bool, self.world.catalog.size)
            return Modality(named, self.tensor(name, None, self.world.catalog.size, None), present)
        if type(scaled) is not bool or (scaled and not set(chosen) <= set(self.scales or {})):
            raise ValueError(f"{self.path}{name}: there are no scales of {short(chosen)}")
        return replace(self.world.features(chosen, self.scales if scaled else None), name=named)

    def count(self, name: str) -> int:
        """How many numbered parts of a name the weights are of."""
        start = f"{self.path}{name}."
        return len({n.removeprefix(start).split(".")[0] for n in self.tensors if n.startswith(start)})


def names(given: object, what: str) -> list[str]:
    """A list of strings, each once.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given) or len({*given}) < len(given):
        raise ValueError(f"{what} must be a list of names, each once")
    return given


def _describe_own(part: Any, describing: Describing) -> dict[str, Any]:
    settings = part.settings()
    lasting = part.state_dict(keep_vars=True)
    for name, buffer in part.named_buffers(remove_duplicate=False):
        if name not in lasting:
            describing.keep(name, buffer)
    if not isinstance(settings, dict):
        raise TypeError(f"settings() gives {type(settings).__name__}, expected a dict")
    return settings


def _build_own(cls: type[Any], reading: Reading) -> nn.Module:
    with torch.device("meta"):
        out: nn.Module = cls(**{name: reading.setting(name) for name in reading.settings})
    lasting = out.state_dict(keep_vars=True)
    for name, buffer in list(out.named_buffers(remove_duplicate=False)):
        if name not in lasting:
            place, _, leaf = name.rpartition(".")
            value = reading.tensor(name, None if buffer.is_floating_point() else buffer.dtype, *buffer.shape)
            setattr(out.get_submodule(place), leaf, value)
    return out


OWN = Kind(_describe_own, _build_own)
