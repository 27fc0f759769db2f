"""What models say of their training, by part: no score depends on it, and files keep it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from reprlib import repr as short
from typing import Any

from torch import nn

from metarec.model import Model
from metarec.nn import record
from metarec.nn.record import INFORMATION

NUMBERS, STAGES = ("fitted_until", "repeat_share", "second"), ("trained", "untrained")
MOST_STAGES = 1000  # of training
Record = dict[str, Any]


def own_parts(model: Model) -> Iterator[tuple[str, Any]]:
    """The parts of a model by name, itself first, without those of its members."""
    if not isinstance(model, nn.Module):
        yield "", model
        return
    theirs = {id(part) for member in model.members().values() for part in _modules(member)}
    yield from ((name, part) for name, part in model.named_modules() if id(part) not in theirs)


def _modules(member: Model) -> Iterator[nn.Module]:
    if isinstance(member, nn.Module):
        yield from member.modules()
    for inner in member.members().values():
        yield from _modules(inner)


def frozen(model: Model) -> list[str]:
    """Names of the model's own weights that are not trained."""
    own = [(n, p) for n, p in own_parts(model) if isinstance(p, nn.Module)]
    weights = [(f"{name}.{leaf}".lstrip("."), w) for name, part in own for leaf, w in part._parameters.items()]
    return sorted(name for name, weight in weights if weight is not None and not weight.requires_grad)


def freeze(model: Model, given: list[str]) -> None:
    """Let these weights not be trained.

    Raises:
        AttributeError: if there is no such weight.
    """
    for name in given:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{type(model).__name__} has no weight {name!r}")
        model.get_parameter(name).requires_grad_(False)


def records_of(model: Model) -> dict[str, Record]:
    """The record of each part that has another one than what it is in."""
    out: dict[str, Record] = {}
    found: dict[str, Record] = {}
    for name, part in own_parts(model):
        found[name] = _record(part)
        if not name or found[name] != found.get(name.rpartition(".")[0]):
            out[name] = found[name]
    return out


def _record(part: Any) -> Record:
    own = vars(part)
    said: Record = {name: float(own[name]) for name in NUMBERS if own.get(name) is not None}
    said |= {name: list(own[name]) for name in STAGES if own.get(name)}
    if own.get("information") is not None:
        said["information"] = own["information"]
    if isinstance(part, nn.Module) and own.get("made") == record.version(part):
        said["made"] = True
    return said


def remember(model: Model, given: object) -> None:
    """Give the parts of a model their records.

    Raises:
        ValueError: if these are no records, or there is no such part.
    """
    if not isinstance(given, Mapping) or "" not in given:
        raise ValueError(f"records must be an object with one for the whole, got {short(given)}")
    parts = dict(own_parts(model))
    if strange := sorted(set(given) - set(parts)):
        raise ValueError(f"records of {short(strange[0])}, which {type(model).__name__} does not have")
    for name in given:
        _check(given[name])
    found: dict[str, Record] = {}
    for name, part in parts.items():
        found[name] = given[name] if name in given else found[name.rpartition(".")[0]]
        _set(part, found[name])


def _check(said: object) -> None:
    if not isinstance(said, Mapping) or not set(said) <= {*NUMBERS, *STAGES, "information", "made"}:
        raise ValueError(f"no record of a training: {short(said)}")
    for name in set(NUMBERS) & set(said):
        check_number(name, said[name])
    for name in set(STAGES) & set(said):
        check_stages(name, said[name])
    if said.get("information", "upstream") not in INFORMATION or said.get("made", True) is not True:
        raise ValueError(f"information must be one of {list(INFORMATION)} and made true, got {short(said)}")


def check_number(name: str, value: object) -> None:
    """Refuse what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {short(value)}")


def check_stages(name: str, value: object) -> None:
    """Refuse what are no names of stages."""
    right = isinstance(value, list) and all(isinstance(stage, str) for stage in value)
    if not right or len({*value}) < len(value) or len(value) > MOST_STAGES:  # type: ignore[arg-type,misc]
        raise ValueError(f"{name} must be a list of at most {MOST_STAGES} names, each once")


def _set(part: Any, said: Record) -> None:
    own = vars(part)
    for name in (*NUMBERS, *STAGES, "information"):
        own.pop(name, None)
        if name in said:
            own[name] = tuple(said[name]) if name in STAGES else said[name]
    if isinstance(part, nn.Module):
        own.pop("made", None)
        if "made" in said:
            own["made"] = record.version(part)
