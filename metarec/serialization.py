"""A trained model as one file: safetensors and JSON, no pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from metarec.data.dataset import Catalog, Vocabulary
from metarec.files import expect_tensor, pack_strings, read_tensors, unpack_strings, write_tensors
from metarec.model import lacking
from metarec.nn import record
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML
from metarec.recipes.structure import difference, empty_model, neighbours_of
from metarec.types import Modality

_WEIGHTS = "weights."
_MOST_STAGES = 1000  # of training
_READ = {  # types of weights, and in which they are served
    torch.float64: torch.float64,
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float32),
}
_OLD_NEIGHBOURS = 1 << 24  # the most that are computed anew for a file of the first version, which has none


def save(model: MML, path: str | Path) -> None:
    """Write a model, its settings and its catalogue to one file, in one step.

    What a :class:`~metarec.Recommender` of this model has added or removed is left out, with a warning;
    :meth:`Recommender.save <metarec.Recommender.save>` keeps it.

    Args:
        model: on any device, of any floating-point type, as its settings and its catalogue make it.
        path: usually named ``.safetensors``; a file that is there already is replaced once the new one is whole.

    Raises:
        TypeError: if the model is not an :class:`~metarec.MML`.
        ValueError: if it has a part that :func:`load` would not build, such as one of your own, or a weight that is
            not finite; names it. Nothing is written.
        RuntimeError: if the weights change meanwhile: the model is trained in another thread. Nothing is written.
        OSError: if the file cannot be written; the old file, if any, is as it was.

    Example:
        >>> import tempfile
        >>> from metarec.datasets import planted
        >>> path = Path(tempfile.mkdtemp()) / "mml.safetensors"
        >>> save(MML.build(planted(users=60, items=40), MMLConfig(dim=8)), path)
        >>> again = load(path)
        >>> again.config.dim, again.catalog.items
        (8, Vocabulary(40 item ids))
    """
    write_model(model, path, {})
    if left_out := lacking(model):
        warnings.warn(
            f"save: {path} holds the model as it was given to a Recommender, without what changed there since: "
            f"{left_out} items; recommender.save(path) keeps them",
            stacklevel=2,
        )


def write_model(model: object, path: str | Path, more: Mapping[str, Any]) -> None:
    """What :func:`save` writes, with more in the header, which :func:`read_model` gives back.

    Raises:
        TypeError, ValueError, RuntimeError, OSError: as for :func:`save`.
    """
    if type(model) is not MML:
        way = "call its own save(path)" if hasattr(model, "save_users") else "of another module save the state_dict()"
        raise TypeError(f"save: expected an MML, got {type(model).__name__}; {way}")
    if problem := difference(model):
        raise ValueError(
            f"save: {path}: not written, as load() would build another model: {problem}; save model.state_dict() and "
            "load it into a model that your own code builds"
        )
    catalog = model.catalog
    header = {
        "kind": "MML",
        "config": {f.name: _plain(getattr(model.config, f.name)) for f in fields(model.config)},
        "items": catalog.items.what,
        "modalities": list(catalog.modalities),
        "attributes": list(catalog.attributes),
        "fitted": model.fitted,
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "fitted_until": model.fitted_until,
        "trained": list(model.trained),
        "repeat_share": model.repeat_share,
        **more,
    }
    tensors = {"warm": torch.from_numpy(model.warm), **pack_strings("items", catalog.items.ids)}
    tensors |= pack_strings("hidden", sorted(catalog.hidden))
    for name, modality in catalog.modalities.items():
        tensors |= {f"modality.{name}.features": modality.features, f"modality.{name}.present": modality.present}
    for name, column in catalog.attributes.items():
        tensors |= pack_strings(f"attribute.{name}", column)
    if (near := neighbours_of(model)) is not None:
        tensors["neighbours"] = near.to(torch.int32)
    tensors |= {_WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors, header)


def load(path: str | Path, *, device: torch.device | str = "cpu") -> MML:
    """Read a model that :func:`save` wrote. It scores as the saved one did, and is in evaluation mode.

    Nothing in the file is trusted: its checksum, its types, that its numbers are finite, and that settings and shapes
    belong together are checked before memory is set aside for a model. Weights of half precision (float16, bfloat16)
    become float32, in which they are served.

    Args:
        path: the file.
        device: where the model goes, wherever it was saved from.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, damaged, of another version, or holds something else; names the file.

    Example:
        >>> import tempfile
        >>> from metarec.datasets import planted
        >>> path = Path(tempfile.mkdtemp()) / "mml.safetensors"
        >>> save(MML.build(planted(users=60, items=40), MMLConfig(dim=8)), path)
        >>> load(path).catalog.items
        Vocabulary(40 item ids)
    """
    return read_model(path, device=device)[0]


def read_model(path: str | Path, *, device: torch.device | str) -> tuple[MML, dict[str, Any]]:
    """What :func:`load` gives, and the header of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`load`.
    """
    tensors, header = read_tensors(path)
    if header.get("kind") != "MML":
        raise ValueError(
            f"{path}: holds no model that load() knows: expected kind 'MML', got {short(header.get('kind'))}; "
            "a training checkpoint is read by train(..., checkpoint=...)"
        )
    config = _config(header.get("config"), path)
    try:
        model = _model(tensors, header, config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: its contents do not make an MML of this version ({type(error).__name__}: {error}); load it with "
            "the version of metarec that saved it, or train again"
        ) from error
    return model.to(device).eval(), header


def _model(tensors: Mapping[str, Tensor], header: Mapping[str, Any], config: MMLConfig) -> MML:
    """The model, its parameters taken from the file as they are: none is made first."""
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    dtype = weights["fusion.bias"].dtype
    strange = sorted(name for name, t in weights.items() if t.dtype != dtype or t.dtype not in _READ)
    if strange:
        raise ValueError(f"weights must be of one type, of {list(_READ)}, {strange[0]} is {weights[strange[0]].dtype}")
    _check_sizes(weights, header, config)
    catalog, warm = _catalog(tensors, header), expect_tensor(tensors, "warm", torch.bool, 1)
    fitted = header.get("fitted", catalog.size)
    if type(fitted) is not int or not 1 <= fitted <= catalog.size or len(warm) != catalog.size or bool(warm[0]):
        raise ValueError(f"warm {tuple(warm.shape)} and fitted={short(fitted)} do not fit {catalog.size} rows")
    near = None
    if "neighbours" in tensors:
        near = _neighbours(tensors, catalog, warm, config.neighbours)
    elif _used(header, config) and (header["format"] > 1 or catalog.size * config.neighbours > _OLD_NEIGHBOURS):
        raise ValueError("the generators' neighbours are missing")
    frozen = _names(header.get("frozen", []), "frozen")
    if len(_names(header.get("trained") or [], "trained")) > _MOST_STAGES:
        raise ValueError(f"trained has more than {_MOST_STAGES} stages")
    model = empty_model(catalog, warm.numpy(), config, fitted, near)
    model.load_state_dict(weights, assign=True)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    _remember(model, header)
    return model.to(_READ[dtype])


def _used(header: Mapping[str, Any], config: MMLConfig) -> list[str]:
    """The modalities that have a learner."""
    found = _names(header["modalities"], "modalities")
    if config.modalities is not None and not set(config.modalities) <= set(found):
        raise ValueError(f"the settings name modalities {config.modalities}, the catalogue has {found}")
    return found if config.modalities is None else list(config.modalities)


def _names(given: object, what: str) -> list[str]:
    """A list of strings, each once."""
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given) or len({*given}) < len(given):
        raise ValueError(f"{what} must be a list of names, each once")
    return given


def _check_sizes(weights: Mapping[str, Tensor], header: Mapping[str, Any], config: MMLConfig) -> None:
    """That the weights are those of a model of these settings, by their names and shapes: none is built for that."""
    used = _used(header, config)
    learners = {name.split(".")[1] for name in weights if name.startswith("learners.")}
    if learners != {"id", *used} or len(used) + 1 != len(learners):
        raise ValueError(f"there are weights of the learners {sorted(learners)}, the settings make {['id', *used]}")
    for learner in learners:
        start = f"learners.{learner}."
        blocks = {name.split(".")[4] for name in weights if name.startswith(f"{start}encoder.blocks.")}
        projections = {name.split(".")[4] for name in weights if name.startswith(f"{start}items.projections.")}
        shape = weights[f"{start}encoder.position"].shape
        if shape != (config.max_length, config.dim) or len(blocks) != config.layers or len(projections) != len(used):
            raise ValueError(
                f"the weights of {learner!r} are {len(blocks)} layers for histories and states of {tuple(shape)} and "
                f"{len(projections)} modalities, the settings make {config.layers} layers of "
                f"{(config.max_length, config.dim)} and {len(used)}"
            )


def _remember(model: MML, header: Mapping[str, Any]) -> None:
    """What the file says of the training; files written before 2026-12 say nothing."""
    until, share, trained = (header.get(name) for name in ("fitted_until", "repeat_share", "trained"))
    for name, number in (("fitted_until", until), ("repeat_share", share)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise ValueError(f"{name} must be a number, got {number!r}")
    model.repeat_share = share
    if trained is None:
        record.forget(model)
        return
    record.remake(model)
    if until is not None:
        record.begin(model, until)
    for stage in trained:
        record.finish(model, stage)


def _neighbours(tensors: Mapping[str, Tensor], catalog: Catalog, warm: Tensor, k: int) -> Tensor:
    near = expect_tensor(tensors, "neighbours", torch.int32, 2).long()
    right = near.shape == (catalog.size, k) and bool(((near >= 0) & (near < catalog.size)).all())
    if not right or not bool((warm[near] | (near == 0)).all()):
        raise ValueError(f"neighbours must be {k} warm items for each of {catalog.size} rows")
    return near


def _plain(value: Any) -> Any:
    """A setting as JSON says it."""
    return dict(value) if isinstance(value, Mapping) else value


def _config(values: Any, path: str | Path) -> MMLConfig:
    """The settings again."""
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the settings must be an object, got {type(values).__name__}; take another copy")
    unknown = sorted(set(values) - {f.name for f in fields(MMLConfig)})
    if unknown:
        raise ValueError(
            f"{path}: unknown settings {short(unknown)}; it was saved by a newer metarec: upgrade to load it"
        )
    try:
        return MMLConfig(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take another copy, or train again within these bounds") from error


def _catalog(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Catalog:
    modalities = {
        name: Modality(
            name,
            expect_tensor(tensors, f"modality.{name}.features", torch.float32, 2),
            expect_tensor(tensors, f"modality.{name}.present", torch.bool, 1),
        )
        for name in _names(header["modalities"], "modalities")
    }
    padded = [name for name, modality in modalities.items() if bool(modality.present[:1].any())]
    if padded:
        raise ValueError(f"modality {padded[0]!r} has features of the padding row")
    attributes = {
        name: unpack_strings(f"attribute.{name}", tensors) for name in _names(header["attributes"], "attributes")
    }
    ids, hidden = unpack_strings("items", tensors), unpack_strings("hidden", tensors) if header["format"] > 1 else []
    if not set(hidden) <= set(ids):  # before a catalogue looks for the nearest ids
        raise ValueError("hidden ids are not those of items")
    if not isinstance(header["items"], str):
        raise ValueError(f"items must be a name, got {header['items']!r}")
    return Catalog(Vocabulary(ids, header["items"]), modalities, attributes, frozenset(hidden))
