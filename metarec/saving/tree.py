"""A model and the models that it is made of, as a list in which parts stand before the wholes that name them.

So a file cannot say a cycle. Tensors that several models share are written once and are shared again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

from torch import Tensor

from metarec.codecs import codec_of
from metarec.model import Model, Saved, is_registered, kind_of
from metarec.saving import records
from metarec.saving.parts import names
from metarec.saving.world import World, single

MODELS = 256  # of a file, each counted as often as it is a part
DEPTH = 16  # of models within models
_FIELDS = {"class", "settings", "parts", "frozen", "records"}


@dataclass(eq=False)
class Packing:
    """Serialises a tree of models, parts first.

    Attributes:
        nodes: what is said of each model.
        tensors: by name.
        shared: names of tensors, and under which name each is written.
    """

    world: World
    nodes: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    _places: dict[Any, tuple[str, Tensor]] = field(default_factory=dict)
    _visits: int = 0

    def add(self, model: Model, path: tuple[str, ...] = ()) -> int:
        """Say a model and all that it is made of; its number.

        Raises:
            TypeError: if a class is not registered, or has no state.
            ValueError: if a model would not be built again as it is, or is nested without end; names the part.
        """
        self._visits += 1
        if len(path) > DEPTH or self._visits > MODELS:
            raise ValueError(
                f"{_where(path[:2])} has models nested more than {DEPTH} deep, or more than {MODELS} of them"
            )
        if id(model) in self._numbers and not model.members():
            return self._numbers[id(model)]
        saved = self._state(model, path)
        node = {
            "class": type(model).__name__,
            "settings": dict(saved.settings),
            "parts": {name: self.add(part, (*path, name)) for name, part in saved.parts.items()},
            "frozen": records.frozen(model),
            "records": records.records_of(model),
        }
        if id(model) in self._numbers:
            return self._numbers[id(model)]
        self._numbers[id(model)] = number = len(self.nodes)
        self.nodes.append(node)
        for name, tensor in saved.tensors.items():
            self._tensor(f"model.{number}.{name}", tensor)
        return number

    def _state(self, model: Model, path: tuple[str, ...]) -> Saved:
        check_kind(model, path)
        own = model.catalog
        if own is not None and own is not self.world.catalog and own.items.ids != self.world.catalog.items.ids:
            raise ValueError(f"{_where(path)} scores other items than the whole: {own.items}")
        try:
            saved = model.state()
        except (TypeError, ValueError) as error:
            raise type(error)(f"{_where(path)}: {error}") from error
        if type(model).from_state.__func__ is Model.from_state.__func__ and codec_of(type(model)) is None:  # type: ignore[attr-defined]
            raise TypeError(f"{_where(path)}: {type(model).__name__} has no from_state(), so load() could not build it")
        return saved

    def _tensor(self, name: str, tensor: Tensor) -> None:
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first, _ = self._places.setdefault(
            place if tensor.numel() else name, (name, tensor)
        )  # so the place stays taken
        if first == name:
            self.tensors[name] = tensor
        else:
            self.shared[name] = first


def check_kind(model: object, path: tuple[str, ...] = ()) -> None:
    """Refuse what :func:`metarec.load` would not know.

    Raises:
        TypeError: names the class and the way out.
    """
    where = _where(path)
    if not isinstance(model, Model):
        raise TypeError(
            f"expected a model, got {type(model).__name__} as {where}; of another module save the state_dict()"
        )
    if is_registered(type(model)):
        return
    method = vars(model).get("method", model)  # what a wrapper is about
    cls = type(method)
    way = "" if isinstance(method, Model) else ", derive it from metarec.Model, give it state() and from_state()"
    raise TypeError(
        f"{where} is a {cls.__module__}.{cls.__qualname__}, which is not registered{way}; call "
        f"metarec.register({cls.__name__}), here and before loading"
    )


def _where(path: tuple[str, ...]) -> str:
    return f"part {'/'.join(path)!r}" if path else "it"


def build(nodes: object, tensors: Mapping[str, Tensor], shared: object, world: World) -> Model:
    """The model that a list of nodes says, the last of them.

    Raises:
        ValueError: if what they say does not belong together.
    """
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MODELS:
        raise ValueError(f"models must be a list of 1 to {MODELS}, got {short(nodes)}")
    own = _owned(len(nodes), tensors, shared)
    models: list[Model] = []
    sizes: list[tuple[int, int]] = []
    for number, node in enumerate(nodes):
        parts = _check_node(number, node)
        count, depth = 1 + sum(sizes[n][0] for n in parts), 1 + max((sizes[n][1] for n in parts), default=-1)
        if count > MODELS or depth > DEPTH:
            raise ValueError(f"model {number} is nested more than {DEPTH} deep, or of more than {MODELS} models")
        sizes.append((count, depth))
    for number, node in enumerate(nodes):
        models.append(_built(node, own[number], models, world))
    return models[-1]


def _check_node(number: int, node: object) -> list[int]:
    if not isinstance(node, dict) or set(node) != _FIELDS or not isinstance(node["class"], str):
        raise ValueError(f"model {number} must be an object of {sorted(_FIELDS)}, got {short(node)}")
    parts = node["parts"]
    if not isinstance(node["settings"], dict) or not isinstance(parts, dict):
        raise ValueError(f"model {number}: settings and parts must be objects")
    if not all(type(part) is int and 0 <= part < number for part in parts.values()):
        raise ValueError(f"model {number}: parts must be models before it, got {short(parts)}")
    names(node["frozen"], "frozen")
    return list(parts.values())


def _owned(count: int, tensors: Mapping[str, Tensor], shared: object) -> list[dict[str, Tensor]]:
    """The tensors of each model, by its own names."""
    if not isinstance(shared, dict) or not all(isinstance(first, str) for first in shared.values()):
        raise ValueError(f"shared must be an object of names, got {short(shared)}")
    lacking = sorted(first for first in shared.values() if not first.startswith("model.") or first not in tensors)
    if lacking or set(shared) & set(tensors):
        raise ValueError(f"shared names tensors that are not there, or are there twice: {short(lacking or shared)}")
    out: list[dict[str, Tensor]] = [{} for _ in range(count)]
    every = {name: t for name, t in tensors.items() if name.startswith("model.")}
    every |= {name: tensors[first] for name, first in shared.items()}
    for name, tensor in every.items():
        _, number, own = (*name.split(".", 2), "")[:3]
        if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < count and own):
            raise ValueError(f"tensor {short(name)} is of no model")
        out[int(number)][own] = tensor
    return out


def _built(node: Mapping[str, Any], tensors: dict[str, Tensor], models: list[Model], world: World) -> Model:
    kind = kind_of(node["class"])
    if not issubclass(kind, Model):
        raise ValueError(f"{node['class']} is no model")
    coded = codec_of(kind) is not None
    if not coded:
        tensors = {name: single(tensor) for name, tensor in tensors.items()}
    saved = Saved(node["settings"], tensors, {name: models[number] for name, number in node["parts"].items()})
    try:
        model = kind.from_state(saved, world.catalog, world.warm)
        if not isinstance(model, kind):
            raise TypeError(f"from_state() gave a {type(model).__name__}")
        if not coded and (unknown := sorted(set(saved.settings) - set(model.state().settings))):
            raise ValueError(f"unknown settings {short(unknown)}; a newer metarec wrote them")
        records.freeze(model, node["frozen"])
        records.remember(model, node["records"])
    except Exception as error:
        raise ValueError(f"{node['class']}: {error}") from error
    return model
