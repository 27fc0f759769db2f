"""A trained model as one file: safetensors and JSON, no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarec.data.dataset import Catalog, Vocabulary
from metarec.files import read_tensors, write_tensors
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML
from metarec.types import Modality

_WEIGHTS = "weights."


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
    }
    tensors = {"warm": torch.from_numpy(model.warm), **_pack("items", catalog.items.ids)}
    tensors |= _pack("hidden", sorted(catalog.hidden))
    for name, modality in catalog.modalities.items():
        tensors |= {f"modality.{name}.features": modality.features, f"modality.{name}.present": modality.present}
    for name, column in catalog.attributes.items():
        tensors |= _pack(f"attribute.{name}", column)
    tensors |= {_WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors, header)


def load(path: str | Path, *, device: torch.device | str = "cpu") -> MML:
    """Read a model that :func:`save` wrote. It scores as the saved one did, and is in evaluation mode.

    Args:
        path: the file.
        device: where the model goes, wherever it was saved from.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, damaged, of another version, or holds something else.
    """
    tensors, header = read_tensors(path)
    if header.get("kind") != "MML":
        raise ValueError(
            f"{path}: holds no model that load() knows: expected kind 'MML', got {header.get('kind')!r}; "
            "a training checkpoint is read by train(..., checkpoint=...)"
        )
    config = _config(header["config"], path)
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    try:
        with torch.random.fork_rng(devices=[]):
            model = MML(_catalog(tensors, header), tensors["warm"].numpy(), config, fitted=header.get("fitted"))
        model.to(weights["fusion.bias"].dtype).load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path}: its contents do not make an MML of this version ({error}); load it with the version of metarec "
            "that saved it, or train again"
        ) from error
    return model.to(device).eval()


def _plain(value: Any) -> Any:
    """A setting as JSON says it."""
    return dict(value) if isinstance(value, Mapping) else value


def _config(values: Mapping[str, Any], path: str | Path) -> MMLConfig:
    """The settings again; JSON has lists where they had tuples."""
    unknown = sorted(set(values) - {f.name for f in fields(MMLConfig)})
    if unknown:
        raise ValueError(f"{path}: unknown settings {unknown}; it was saved by a newer metarec: upgrade to load it")
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    try:
        return MMLConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _catalog(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Catalog:
    modalities = {
        name: Modality(name, tensors[f"modality.{name}.features"], tensors[f"modality.{name}.present"])
        for name in header["modalities"]
    }
    attributes = {name: _unpack(f"attribute.{name}", tensors) for name in header["attributes"]}
    hidden = _unpack("hidden", tensors) if header["format"] > 1 else []
    return Catalog(Vocabulary(_unpack("items", tensors), header["items"]), modalities, attributes, frozenset(hidden))


def _pack(name: str, strings: Sequence[str]) -> dict[str, Tensor]:
    """Strings as two tensors: all their UTF-8 bytes, (bytes,) uint8, and where each ends, (strings,) int64."""
    encoded = [string.encode() for string in strings]
    ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {f"{name}.bytes": torch.from_numpy(joined), f"{name}.ends": torch.from_numpy(ends)}


def _unpack(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The strings that :func:`_pack` put away."""
    joined, ends = tensors[f"{name}.bytes"].numpy().tobytes(), tensors[f"{name}.ends"].tolist()
    return [joined[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
