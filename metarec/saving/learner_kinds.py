"""The learners that this library has, and what adapts and fuses them."""

from __future__ import annotations

import copy
import importlib.util
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from metarec.distributed import is_sharded
from metarec.functional.scaling import FeatureScale
from metarec.meta import MetaLearner
from metarec.model import register
from metarec.nn import ModalityLearner, TableItems
from metarec.nn.kinds import EventKinds
from metarec.recipes.anil import HeadLearner
from metarec.recipes.config import RATE, STEPS
from metarec.recipes.fusing import FusedMethod
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.recipes.mml import MML
from metarec.saving.mml_kind import MML_KIND
from metarec.saving.part_kinds import DIM, MANY
from metarec.saving.parts import Describing, Kind, Reading, add_kind
from metarec.saving.structured import STRUCTURED
from metarec.saving.world import Scales

_NUMBERS = ("length", "farthest", "limit", "shortest")
_TENSORS = ("mean", "varies", "outliers")


def _learner(learner: ModalityLearner, describing: Describing) -> dict[str, Any]:
    if any(map(is_sharded, learner.parameters())):
        learner.items.table()  # which says what to do
    size = describing.world.catalog.size
    describing.scales = learner.scales or describing.world.scales(learner.fitted or size)
    for name in ("items", "encoder", "context"):
        describing.part(name, getattr(learner, name))
    if learner.kinds is not None:
        describing.part("kinds", learner.kinds)
    describing.keep("candidates", learner.candidates)
    used = _standardised(describing.parts)
    scales = {n: scale for n, scale in describing.scales.items() if learner.scales is not None or n in used}
    for name, scale in scales.items():
        for each in _TENSORS:
            describing.keep(f"scales.{name}.{each}", getattr(scale, each))
    numbers = {name: [getattr(scale, n) for n in _NUMBERS] for name, scale in scales.items()}
    said = {name: [*(n if n < torch.inf else None for n in numbers[name]), scales[name].main] for name in scales}
    return {"fitted": learner.fitted, "scales": said}


def _standardised(parts: Any) -> set[str]:
    """Names of the modalities that are read standardised."""
    if isinstance(parts, list):
        return set().union(*map(_standardised, parts))
    if not isinstance(parts, dict):
        return set()
    own = {*parts["modalities"]} if parts.get("standardised") is True else set()
    return own.union(*map(_standardised, parts.values()))


def _build_learner(cls: type[Any], reading: Reading) -> nn.Module:
    reading.scales = _scales(reading)
    items, encoder, context = (reading.part(name) for name in ("items", "encoder", "context"))
    out: Any = object.__new__(cls)
    parts = {"context": context, "candidates": reading.known("candidates"), "kinds": _event_kinds(reading)}
    ModalityLearner.__init__(out, items, encoder, **parts)
    out.fitted = _fitted(reading)
    out.catalog, out.warm, out.scales = reading.world.catalog, reading.world.warm, reading.scales or None
    return cast(nn.Module, out)


def _event_kinds(reading: Reading) -> EventKinds | None:
    kinds, known = reading.part("kinds") if "kinds" in reading.parts else None, reading.world.catalog.kinds
    if kinds is not None and not (isinstance(kinds, EventKinds) and len(kinds.weight) == len(known)):
        raise ValueError(f"{reading.path}kinds must be vectors of the {len(known)} kinds of events of the catalogue")
    return kinds


def _fitted(reading: Reading) -> int | None:
    if reading.setting("fitted") is None:
        return None
    return reading.whole("fitted", 1, reading.world.catalog.size)


def _scales(reading: Reading) -> Scales:
    said, catalog = reading.setting("scales"), reading.world.catalog
    if not isinstance(said, dict) or not set(said) <= set(catalog.modalities):
        raise ValueError(f"{reading.path}scales must be of modalities of the catalogue")
    return {name: _scale(reading, name, numbers) for name, numbers in said.items()}


def _scale(reading: Reading, name: str, numbers: object) -> FeatureScale:
    start, modality = f"scales.{name}", reading.world.catalog[name]
    if not isinstance(numbers, list) or len(numbers) != len(_NUMBERS) + 1:
        raise ValueError(f"{reading.path}{start} must be {len(_NUMBERS) + 1} numbers")
    *lengths, main = numbers
    limit = _NUMBERS.index("limit")
    unlimited, lengths[limit] = lengths[limit] is None, 0.0 if lengths[limit] is None else lengths[limit]
    right = all(type(n) in (int, float) and 0 <= n < 1e300 for n in lengths) and lengths[0] > 0
    if not right or not (main is None or (type(main) is int and 0 <= main < modality.dim)):
        raise ValueError(f"{reading.path}{start} are no lengths and a column, got {numbers}")
    mean = reading.tensor(f"{start}.mean", torch.float64, modality.dim)
    varies = reading.tensor(f"{start}.varies", torch.bool, modality.dim)
    outliers = reading.tensor(f"{start}.outliers", torch.int64, None)
    if bool(((outliers < 0) | (outliers >= len(modality.features))).any()):
        raise ValueError(f"{reading.path}{start}.outliers are no rows of the catalogue")
    length, farthest, limit, shortest = lengths
    return FeatureScale(mean, length, varies, farthest, torch.inf if unlimited else limit, shortest, outliers, main)


def _transitions(learner: TransitionLearner, describing: Describing) -> dict[str, Any]:
    return {"dim": learner.items.weight.shape[1], "margin": learner.margin}


def _build_transitions(cls: type[Any], reading: Reading) -> nn.Module:
    world, dim, margin = reading.world, reading.whole("dim", *DIM), reading.number("margin", 0, 1e9)
    data = SimpleNamespace(catalog=world.catalog, warm=world.warm, known_repeat_share=None, second=1.0)
    with torch.device("meta"):
        out: TransitionLearner = cls(data, dim=dim, margin=margin)
    out.relation = torch.zeros(dim)
    return out


def _meta(meta: MetaLearner, describing: Describing) -> dict[str, Any]:
    describing.part("learner", meta.learner)
    return {
        "lr": meta.lr,
        "steps": meta.steps,
        "adapts": meta.adapts,
        "second_order": meta.second_order,
        "objectives": list(meta.objectives),
        "learn2learn": meta.engine == "learn2learn",
        "memory_budget": meta.memory_budget,
        "graphs": meta.graphs is not None,
    }


def _inner_loop(reading: Reading) -> dict[str, Any]:
    objectives = reading.setting("objectives")
    if not isinstance(objectives, list) or len(objectives) != 2 or not all(isinstance(o, str) for o in objectives):
        raise ValueError(f"{reading.path}objectives must be two losses, got {objectives!r}")
    return {
        "lr": reading.number("lr", *RATE),
        "steps": reading.whole("steps", *STEPS),
        "second_order": reading.choice("second_order", (False, True)),
        "objectives": tuple(objectives),
    }


def _build_meta(cls: type[Any], reading: Reading) -> nn.Module:
    wanted = reading.choice("learn2learn", (False, True))  # its results are the same, so it may be missing here
    stepped = wanted and importlib.util.find_spec("learn2learn") is not None
    budget = reading.setting("memory_budget")
    out: MetaLearner = cls(
        reading.part("learner"),
        adapts=reading.choice("adapts", ("encoder", "all")),
        engine="learn2learn" if stepped else "auto",
        memory_budget=None if budget is None else reading.whole("memory_budget", 1, 1 << 60),
        graphs=reading.choice("graphs", (False, True)),
        **_inner_loop(reading),
    )
    return out


def _meta_sgd(meta: MetaSGD, describing: Describing) -> dict[str, Any]:
    describing.part("learner", meta.learner)
    named = ("lr", "steps", "second_order")
    return {**{name: getattr(meta, name) for name in named}, "objectives": list(meta.objectives)}


def _build_meta_sgd(cls: type[Any], reading: Reading) -> nn.Module:
    learner, loop = reading.part("learner"), _inner_loop(reading)
    with torch.device("meta"):
        out: MetaSGD = cls(_without_items(learner), **loop)
    out.learner = learner
    return out


def _without_items(learner: Any) -> Any:
    """A learner whose items are empty, to ask it what adapts while its weights have no values."""
    if not isinstance(learner, ModalityLearner):
        return learner
    out = copy.copy(learner)
    vars(out)["_modules"] = {**vars(learner)["_modules"], "context": None}
    rows = len(learner.candidates)
    out.items = TableItems(torch.empty(rows, 1, device="meta"), torch.empty(rows, dtype=torch.bool, device="meta"))
    return out


def _fused(method: FusedMethod, describing: Describing) -> dict[str, Any]:
    for number, meta in enumerate(method.metas):
        describing.part(f"metas.{number}", meta)
    describing.part("fusion", method.fusion)
    return {
        "metas": len(method.metas),
        "names": None if method.names is None else list(method.names),
        "fitted": method.fitted,
    }


def _build_fused(cls: type[Any], reading: Reading) -> nn.Module:
    metas = [reading.part(f"metas.{number}") for number in range(reading.whole("metas", *MANY))]
    given = None if reading.setting("names") is None else reading.names("names")
    if given is not None and len(given) != len(metas):
        raise ValueError(f"{reading.path}names must be of {len(metas)} learners, got {len(given)}")
    out: FusedMethod = cls(metas, reading.part("fusion"), names=given)
    out.catalog, out.warm, out.fitted = reading.world.catalog, reading.world.warm, _fitted(reading)
    return out


for _cls, _kind in {
    ModalityLearner: Kind(_learner, _build_learner),
    MetaLearner: Kind(_meta, _build_meta),
    MetaSGD: Kind(_meta_sgd, _build_meta_sgd),
    FusedMethod: Kind(_fused, _build_fused),
    MML: MML_KIND,
}.items():
    add_kind(register(_cls, STRUCTURED), _kind)
register(HeadLearner, STRUCTURED)
add_kind(register(TransitionLearner), Kind(_transitions, _build_transitions))
