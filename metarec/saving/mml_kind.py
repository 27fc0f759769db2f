"""MML as its settings say it, and parts of the user's own in the place of its encoders and its fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn

from metarec.nn import AdaptiveFusion, ColdItemGenerator, SequenceEncoder
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML
from metarec.saving.parts import Describing, Kind, Reading


def neighbours_of(model: MML) -> Tensor | None:
    """The nearest warm items that a model's generators attend to, if it has any."""
    items = model.learner("id").items
    return items.neighbours if isinstance(items, ColdItemGenerator) else None


def settings_of(config: MMLConfig) -> dict[str, Any]:
    """The settings as JSON says them."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def own_parts(model: MML) -> Iterator[tuple[str, nn.Module]]:
    """Encoders and fusion of other classes than those that the settings make."""
    for name in model.learners:
        if type(encoder := model.learner(name).encoder) is not SequenceEncoder:
            yield f"learners.{name}.encoder", encoder
    if type(model.fusion) is not AdaptiveFusion:
        yield "fusion", model.fusion


def _describe(model: MML, describing: Describing) -> dict[str, Any]:
    if (near := neighbours_of(model)) is not None:
        describing.keep("neighbours", near)
    for name in model.learners:
        items = model.learner(name).items
        if isinstance(items, ColdItemGenerator) and bool((still := items.cold & torch.from_numpy(model.warm)).any()):
            describing.keep(f"{name}.generated", still)
    for name, part in own_parts(model):
        describing.part(name, part)
    return {"config": settings_of(model.config), "fitted": model.fitted}


def _build(cls: type[Any], reading: Reading) -> nn.Module:
    """Its settings are compared with the weights first: nothing is built for that."""
    world, config = reading.world, config_of(reading.setting("config"))
    used = used_modalities(list(world.catalog.modalities), config)
    own = {name: reading.part(name) for name in reading.parts}
    if not set(own) <= {"fusion", *(f"learners.{name}.encoder" for name in ("id", *used))}:
        raise ValueError(f"{reading.path}: MML has no parts {short(sorted(own))} to replace")
    check_sizes(_under(reading), used, config, own)
    fitted, near = reading.whole("fitted", 1, world.catalog.size), None
    if used:
        near = check_neighbours(reading.tensor("neighbours", torch.int64, None, None), world, config.neighbours)
        world.copy()
    with torch.device("meta"):
        out: MML = cls(world.catalog, world.warm, config, fitted=fitted, neighbours=near)
    for name, part in own.items():
        place, _, leaf = name.rpartition(".")
        setattr(out.get_submodule(place), leaf, part)
    for name in used:
        if reading.has(f"{name}.generated"):
            _go_on_generating(out.learner(name).items, reading.known(f"{name}.generated"))
    return out


def _go_on_generating(items: Any, still: Tensor) -> None:
    """Items that became warm while the model learned on, and whose vectors a generator makes as before."""
    items.cold, items.replaceable = items.cold | (items.replaceable & still), items.replaceable & ~still
    items.known = items.items.known | items.cold


def _under(reading: Reading) -> dict[str, Tensor]:
    start = reading.path
    return {name.removeprefix(start): t for name, t in reading.tensors.items() if name.startswith(start)}


def config_of(values: object) -> MMLConfig:
    """The settings again.

    Raises:
        ValueError: if they are none.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the settings must be an object, got {type(values).__name__}; take another copy")
    unknown = sorted(set(values) - {f.name for f in fields(MMLConfig)})
    if unknown:
        raise ValueError(f"unknown settings {short(unknown)}; it was saved by a newer metarec: upgrade to load it")
    try:
        return MMLConfig(**values)
    except ValueError as error:
        raise ValueError(f"{error}; take another copy, or train again within these bounds") from error


def used_modalities(found: list[str], config: MMLConfig) -> list[str]:
    """The modalities that have a learner.

    Raises:
        ValueError: if the settings name one that the catalogue does not have.
    """
    if config.modalities is not None and not set(config.modalities) <= set(found):
        raise ValueError(f"the settings name modalities {short(config.modalities)}, the catalogue has {short(found)}")
    return found if config.modalities is None else list(config.modalities)


def check_sizes(weights: Mapping[str, Tensor], used: list[str], config: MMLConfig, own: Mapping[str, Any]) -> None:
    """That the weights are those of a model of these settings, by their names and shapes.

    Args:
        weights: by name.
        used: the modalities.
        config: the settings.
        own: parts of the user's own, by name, which the settings do not make.

    Raises:
        ValueError: if they are not.
    """
    learners = {name.split(".")[1] for name in weights if name.startswith("learners.")}
    if learners != {"id", *used} or len(used) + 1 != len(learners):
        raise ValueError(f"there are weights of the learners {sorted(learners)}, the settings make {['id', *used]}")
    for learner in learners:
        start = f"learners.{learner}."
        blocks = {name.split(".")[4] for name in weights if name.startswith(f"{start}encoder.blocks.")}
        projections = {name.split(".")[4] for name in weights if name.startswith(f"{start}items.projections.")}
        made = f"{start}encoder" not in own
        shape = weights[f"{start}encoder.position"].shape if made else (config.max_length, config.dim)
        layers = len(blocks) if made else config.layers
        if shape != (config.max_length, config.dim) or layers != config.layers or len(projections) != len(used):
            raise ValueError(
                f"the weights of {learner!r} are {layers} layers for histories and states of {tuple(shape)} and "
                f"{len(projections)} modalities, the settings make {config.layers} layers of "
                f"{(config.max_length, config.dim)} and {len(used)}"
            )


def check_neighbours(near: Tensor, world: Any, k: int) -> Tensor:
    """The neighbours, if they are k warm items for each row.

    Raises:
        ValueError: if they are not.
    """
    size, warm = world.catalog.size, torch.from_numpy(world.warm)
    right = near.shape == (size, k) and bool(((near >= 0) & (near < size)).all())
    if not right or not bool((warm[near] | (near == 0)).all()):
        raise ValueError(f"neighbours must be {k} warm items for each of {size} rows")
    return near


MML_KIND = Kind(_describe, _build)
