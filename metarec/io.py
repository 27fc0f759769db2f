"""Any trained model as one file: safetensors and JSON, no pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, cast

import torch
from torch import nn

from metarec.files import read_tensors, write_tensors
from metarec.model import Model
from metarec.recipes.mml import MML
from metarec.saving import mml_file, tree
from metarec.saving.catalogs import pack_catalog, unpack_catalog
from metarec.saving.world import world_of
from metarec.served import lacking


def save(model: Model, path: str | Path) -> None:
    """Write a model, all that it is made of, and its catalogue to one file, in one step.

    Counts, learners, what adapts them, :class:`~metarec.MML`, ensembles of them, and models of your own whose class is
    registered by :func:`metarec.register`. What a :class:`~metarec.Recommender` of this model has added or removed is
    left out, with a warning; :meth:`Recommender.save <metarec.Recommender.save>` keeps it.

    Args:
        model: on any device; learners of any floating-point type, as their parts and the catalogue make them.
        path: usually named ``.safetensors``; a file that is there already is replaced once the new one is whole.

    Raises:
        TypeError: if it, or a part of it, is no model, or of a class that is not registered; names it. Nothing is
            written.
        ValueError: if it has a part that :func:`load` would not build, such as an altered module, or a weight that is
            not finite; names it. Nothing is written.
        RuntimeError: if the weights change meanwhile: the model is trained in another thread. Nothing is written.
        OSError: if the file cannot be written; the old file, if any, is as it was.

    Example:
        >>> import tempfile
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import sasrec
        >>> path = Path(tempfile.mkdtemp()) / "sasrec.safetensors"
        >>> save(sasrec.build(planted(users=60, items=40), ("id", "text"), dim=8), path)
        >>> again = load(path)
        >>> type(again).__name__, again.catalog.items
        ('ModalityLearner', Vocabulary(40 item ids))
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
    if hasattr(model, "save_users"):
        raise TypeError(f"save: expected a model, got {type(model).__name__}; call its own save(path)")
    try:
        tree.check_kind(model)
        header, tensors = _packed(cast(Model, model))
    except TypeError as error:
        raise TypeError(f"save: {path}: not written: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"save: {path}: not written, as load() would build another model: {error}; save model.state_dict() and "
            "load it into a model that your own code builds"
        ) from error
    write_tensors(path, tensors, {**header, **more})


def _packed(model: Model) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a model with its catalogue."""
    catalog, warm = model.catalog, model.warm
    if catalog is None or warm is None:
        raise ValueError(f"nothing says which items {type(model).__name__} scores; call attach(upstream) before")
    about, tensors = pack_catalog(catalog, warm)
    with world_of(catalog, warm) as world:
        if mml_file.fits(model):
            header, own = mml_file.pack(cast(MML, model))
        else:
            packing = tree.Packing(world)
            packing.add(model)
            header = {"kind": "model", "models": packing.nodes, "shared": packing.shared}
            own = packing.tensors
    return {**about, **header}, {**tensors, **own}


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Any:
    """Read a model that :func:`save` wrote. It scores as the saved one did, and is in evaluation mode.

    Nothing in the file is trusted: its checksum, its types, that its numbers are finite, and that settings and shapes
    belong together are checked before memory is set aside for a model. Classes are those that are registered under the
    names in the file; nothing is imported. Weights of half precision (float16, bfloat16) become float32, in which they
    are served.

    Args:
        path: the file.
        device: where the model goes, wherever it was saved from.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, damaged, of another version, names a class that is not registered, or holds
            something else; names the file.

    Example:
        >>> import tempfile
        >>> from metarec.datasets import planted
        >>> from metarec.recipes import MMLConfig
        >>> path = Path(tempfile.mkdtemp()) / "mml.safetensors"
        >>> save(MML.build(planted(users=60, items=40), MMLConfig(dim=8)), path)
        >>> load(path).catalog.items
        Vocabulary(40 item ids)
    """
    return read_model(path, device=device)[0]


def read_model(path: str | Path, *, device: torch.device | str) -> tuple[Any, dict[str, Any]]:
    """What :func:`load` gives, and the header of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`load`.
    """
    tensors, header = read_tensors(path)
    kind = header.get("kind")
    if kind not in ("MML", "model"):
        raise ValueError(
            f"{path}: holds no model that load() knows: expected kind 'model' or 'MML', got {short(kind)}; "
            "a training checkpoint is read by train(..., checkpoint=...)"
        )
    try:
        catalog, warm = unpack_catalog(tensors, header)
        with world_of(catalog, warm) as world:
            if kind == "MML":
                model: Any = mml_file.unpack(tensors, header, world)
            else:
                model = tree.build(header.get("models"), tensors, header.get("shared"), world)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        what = "an MML" if kind == "MML" else "a model"
        raise ValueError(
            f"{path}: its contents do not make {what} of this version ({type(error).__name__}: {error}); load it with "
            "the version of metarec that saved it, or train again"
        ) from error
    return (model.to(device).eval() if isinstance(model, nn.Module) else model), header
