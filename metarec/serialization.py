"""A trained model as one file: safetensors and JSON, no pickle."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Catalog, Vocabulary
from metarec.files import read_tensors, write_tensors
from metarec.nn import ColdItemGenerator, record
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML
from metarec.types import Modality

_WEIGHTS = "weights."
MOST = {  # more is a damaged or hostile file, and would take memory or time without end
    "dim": 1 << 16,
    "layers": 1 << 10,
    "heads": 1 << 10,
    "max_length": 1 << 20,
    "negatives": 1 << 16,
    "neighbours": 1 << 10,
    "inner_steps": 1 << 16,
}


def save(model: MML, path: str | Path) -> None:
    """Write a model, its settings and its catalogue to one file, in one step.

    Args:
        model: on any device.
        path: usually named ``.safetensors``; a file that is there already is replaced once the new one is whole.

    Raises:
        TypeError: if the model is not an :class:`~metarec.MML`.
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
    if not isinstance(model, MML):
        raise TypeError(f"save: expected an MML, got {type(model).__name__}; of another module save the state_dict()")
    catalog = model.catalog
    header = {
        "kind": "MML",
        "config": {f.name: _plain(getattr(model.config, f.name)) for f in fields(model.config)},
        "items": catalog.items.what,
        "modalities": list(catalog.modalities),
        "attributes": list(catalog.attributes),
        "fitted": model.fitted,
        "fitted_until": model.fitted_until,
        "trained": list(model.trained),
        "repeat_share": model.repeat_share,
    }
    tensors = {"warm": torch.from_numpy(model.warm), **_pack("items", catalog.items.ids)}
    tensors |= _pack("hidden", sorted(catalog.hidden))
    for name, modality in catalog.modalities.items():
        tensors |= {f"modality.{name}.features": modality.features, f"modality.{name}.present": modality.present}
    for name, column in catalog.attributes.items():
        tensors |= _pack(f"attribute.{name}", column)
    if isinstance(items := model.learner("id").items, ColdItemGenerator):
        tensors["neighbours"] = items.neighbours.to(torch.int32)
    tensors |= {_WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors, header)


def load(path: str | Path, *, device: torch.device | str = "cpu") -> MML:
    """Read a model that :func:`save` wrote. It scores as the saved one did, and is in evaluation mode.

    Nothing in the file is trusted: its checksum, its types, and that its shapes belong together are checked before
    memory is set aside for a model.

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
    tensors, header = read_tensors(path)
    if header.get("kind") != "MML":
        raise ValueError(
            f"{path}: holds no model that load() knows: expected kind 'MML', got {header.get('kind')!r}; "
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
    return model.to(device).eval()


def _model(tensors: Mapping[str, Tensor], header: Mapping[str, Any], config: MMLConfig) -> MML:
    """The model, its parameters taken from the file as they are: none is made first."""
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    dtype = weights["fusion.bias"].dtype
    strange = sorted(name for name, t in weights.items() if t.dtype != dtype or not t.is_floating_point())
    if strange:
        raise ValueError(
            f"weights must be floating-point numbers of one type, {strange[0]} is {weights[strange[0]].dtype}"
        )
    catalog, warm = _catalog(tensors, header), _expect(tensors, "warm", torch.bool, 1)
    fitted = header.get("fitted", catalog.size)
    if type(fitted) is not int or not 1 <= fitted <= catalog.size or len(warm) != catalog.size or bool(warm[0]):
        raise ValueError(f"warm {tuple(warm.shape)} and fitted={fitted!r} do not fit {catalog.size} rows")
    near = _neighbours(tensors, catalog, warm, config.neighbours) if "neighbours" in tensors else None
    with torch.device("meta"):
        model = MML(catalog, warm.numpy(), config, fitted=fitted, neighbours=near)
    model.load_state_dict(weights, assign=True)
    _remember(model, header)
    return model.to(dtype)


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
    if not isinstance(trained, list) or not all(isinstance(stage, str) for stage in trained):
        raise ValueError(f"trained must be names of stages, got {trained!r}")
    record.remake(model)
    if until is not None:
        record.begin(model, until)
    for stage in trained:
        record.finish(model, stage)


def _neighbours(tensors: Mapping[str, Tensor], catalog: Catalog, warm: Tensor, k: int) -> Tensor:
    near = _expect(tensors, "neighbours", torch.int32, 2).long()
    right = near.shape == (catalog.size, k) and bool(((near >= 0) & (near < catalog.size)).all())
    if not right or not bool((warm[near] | (near == 0)).all()):
        raise ValueError(f"neighbours must be {k} warm items for each of {catalog.size} rows")
    return near


def _expect(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, dimensions: int) -> Tensor:
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.ndim != dimensions:
        raise ValueError(
            f"{name} must be {dtype} with {dimensions} dimensions, got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor


def _plain(value: Any) -> Any:
    """A setting as JSON says it."""
    return dict(value) if isinstance(value, Mapping) else value


def _config(values: Any, path: str | Path) -> MMLConfig:
    """The settings again; JSON has lists where they had tuples."""
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the settings must be an object, got {type(values).__name__}; take another copy")
    unknown = sorted(set(values) - {f.name for f in fields(MMLConfig)})
    if unknown:
        raise ValueError(f"{path}: unknown settings {unknown}; it was saved by a newer metarec: upgrade to load it")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    for name in MOST:
        value = settings.get(name, 1)
        if type(value) is not int or value > MOST[name]:
            raise ValueError(f"{path}: {name} must be an integer of at most {MOST[name]}, got {value!r}")
    try:
        config = MMLConfig(**settings)
        _check_rates(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _check_rates(config: MMLConfig) -> None:
    """Numbers where there must be numbers: what serving reads of the settings."""
    names = ("id", *(config.modalities or ()))
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"modalities must be names, got {config.modalities!r}")
    settings = (config.test_steps, config.test_lr, config.lr)
    values = [v for s in settings for v in (s.values() if isinstance(s, Mapping) else [s]) if v is not None]
    values += [config.inner_lr, config.dropout, config.generated]
    strange = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1e6]
    kinds = ("bpr", "sampled_softmax", "softmax")
    if strange or len(config.objectives) != 2 or not all(kind in kinds for kind in config.objectives):
        raise ValueError(f"settings out of range: {strange or config.objectives!r}")
    if config.test_adapts not in ("encoder", "all"):
        raise ValueError(f"test_adapts must be 'encoder' or 'all', got {config.test_adapts!r}")


def _catalog(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Catalog:
    modalities = {
        name: Modality(
            name,
            _expect(tensors, f"modality.{name}.features", torch.float32, 2),
            _expect(tensors, f"modality.{name}.present", torch.bool, 1),
        )
        for name in header["modalities"]
    }
    attributes = {name: _unpack(f"attribute.{name}", tensors) for name in header["attributes"]}
    hidden = _unpack("hidden", tensors) if header["format"] > 1 else []
    if not isinstance(header["items"], str):
        raise ValueError(f"items must be a name, got {header['items']!r}")
    return Catalog(Vocabulary(_unpack("items", tensors), header["items"]), modalities, attributes, frozenset(hidden))


def _pack(name: str, strings: Sequence[str]) -> dict[str, Tensor]:
    """Strings as two tensors: all their UTF-8 bytes, (bytes,) uint8, and where each ends, (strings,) int64."""
    encoded = [string.encode() for string in strings]
    ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {f"{name}.bytes": torch.from_numpy(joined), f"{name}.ends": torch.from_numpy(ends)}


def _unpack(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The strings that :func:`_pack` put away."""
    joined = _expect(tensors, f"{name}.bytes", torch.uint8, 1).numpy().tobytes()
    ends = [0, *_expect(tensors, f"{name}.ends", torch.int64, 1).tolist()]
    if ends[-1] != len(joined) or any(start > end for start, end in itertools.pairwise(ends)):
        raise ValueError(f"{name}.ends does not divide its {len(joined)} bytes")
    return [joined[start:end].decode() for start, end in itertools.pairwise(ends)]
