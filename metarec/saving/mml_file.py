"""The layout of files that hold one MML, which earlier releases read and wrote; their headers name no other model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarec.files import expect_tensor
from metarec.model import Saved
from metarec.nn import record
from metarec.nn.generator import warm_neighbours
from metarec.recipes.features import scales_of, standardised
from metarec.recipes.mml import MML
from metarec.saving import records
from metarec.saving.mml_kind import check_sizes, config_of, own_parts, settings_of, used_modalities
from metarec.saving.parts import names
from metarec.saving.world import World, quietly

_WEIGHTS = "weights."
OLD_NEIGHBOURS = 1 << 24  # the most that are computed anew for a file of the first version, which has none


def fits(model: object) -> bool:
    """Whether that layout can hold a model: an MML as its settings make it."""
    if type(model) is not MML:
        return False
    every = list(model.named_parameters(remove_duplicate=False))
    return not (any(own_parts(model)) or "moments" in vars(model)) and len(every) == len(list(model.parameters()))


def pack(model: MML) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        ValueError: if the model is not what its settings and its catalogue make; names the first difference.
    """
    saved = model.state()
    header = {
        "kind": "MML",
        "config": settings_of(model.config),
        "fitted": model.fitted,
        "frozen": records.frozen(model),
        "fitted_until": model.fitted_until,
        "trained": list(model.trained),
        "repeat_share": model.repeat_share,
    }
    told = {name: vars(model)[name] for name in ("information", "second") if vars(model).get(name) is not None}
    tensors = {_WEIGHTS + name: tensor for name, tensor in saved.tensors.items()}
    if (near := tensors.pop(f"{_WEIGHTS}neighbours", None)) is not None:
        tensors["neighbours"] = near.to(torch.int32)
    return {**header, **told}, tensors


def unpack(tensors: Mapping[str, Tensor], header: Mapping[str, Any], world: World) -> MML:
    """The model again.

    Raises:
        AttributeError, LookupError, ValueError: if what is said does not belong together.
    """
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    config, catalog = config_of(header.get("config")), world.catalog
    used = used_modalities(list(catalog.modalities), config)
    check_sizes(weights, used, config, {})
    fitted = header.get("fitted", catalog.size)
    if used:
        weights["neighbours"] = _neighbours(tensors, header, world, fitted)
    frozen = names(header.get("frozen", []), "frozen")
    if header.get("trained") is not None:
        records.check_stages("trained", header["trained"])
    settings = {"config": header.get("config"), "fitted": fitted}
    model: MML = MML.from_state(Saved({"settings": settings, "parts": {}}, weights), catalog, world.warm)
    records.freeze(model, frozen)
    _remember(model, header)
    return model


def _neighbours(tensors: Mapping[str, Tensor], header: Mapping[str, Any], world: World, fitted: object) -> Tensor:
    """The generators' neighbours; computed for a file of the first version."""
    config, catalog = config_of(header["config"]), world.catalog
    if "neighbours" in tensors:
        return expect_tensor(tensors, "neighbours", torch.int32, 2).long()
    if header["format"] > 1 or catalog.size * config.neighbours > OLD_NEIGHBOURS:
        raise ValueError("the generators' neighbours are missing")
    if type(fitted) is not int or not 1 <= fitted <= catalog.size:
        raise ValueError(f"fitted must be a number of rows, got {fitted!r}")
    used = sorted(catalog.modalities) if config.modalities is None else config.modalities
    scales = quietly(lambda: scales_of(catalog, used, fitted))
    return warm_neighbours(standardised(catalog, scales), torch.from_numpy(world.warm), config.neighbours)


def _remember(model: MML, header: Mapping[str, Any]) -> None:
    """What the file says of the training; files written before 2026-12 say nothing."""
    until, share, trained = (header.get(name) for name in ("fitted_until", "repeat_share", "trained"))
    for name, number in (("fitted_until", until), ("repeat_share", share), ("second", header.get("second"))):
        if number is not None:
            records.check_number(name, number)
            vars(model)[name] = number
    if (information := header.get("information")) is not None:
        if information not in record.INFORMATION:
            raise ValueError(f"information must be one of {list(record.INFORMATION)}")
        vars(model)["information"] = information
    for learner in model.learners.values():
        vars(learner)["repeat_share"] = share
    vars(model).pop("fitted_until", None)
    if trained is None:
        record.forget(model)
        return
    record.remake(model)
    if until is not None:
        record.begin(model, until)
    for stage in trained:
        record.finish(model, stage)
