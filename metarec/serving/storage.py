"""Adapted users in a file, bound to the weights that they were adapted from."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as short

import numpy as np
import torch
from torch import Tensor

from metarec.files import checksum, read_tensors, write_tensors
from metarec.recipes.mml import MML
from metarec.serving.clicks import Clicks
from metarec.serving.snapshot import Snapshot
from metarec.serving.standing import Standing

_NAMES = ("state", "active", "rows", "corrections")


def fingerprint(model: object) -> str:
    """A checksum over what decides where a user stands; adding or removing items leaves it as it is.

    Raises:
        TypeError: if the model is not an :class:`~metarec.MML`.
    """
    if not isinstance(model, MML):
        raise TypeError(
            f"only users of an MML are saved, got those of {type(model).__name__}; save their clicks instead"
        )
    size, fitted = model.catalog.size, model.fitted
    own = {n: (t[:fitted] if t.ndim and len(t) == size else t).cpu() for n, t in model.state_dict().items()}
    for name, modality in model.catalog.modalities.items():
        own |= {
            f"{name}.features": modality.features[:fitted].cpu(),
            f"{name}.present": modality.present[:fitted].cpu(),
        }
    own["warm"] = torch.from_numpy(model.warm[:fitted])
    return checksum(own, "\n".join((repr(model.config), *model.catalog.items.ids[: fitted - 1])))


def write_users(path: str | Path, model: object, clicks: Clicks, standing: Standing) -> None:
    """Write users; see :meth:`Users.save <metarec.recommender.Users.save>`."""
    tensors = dict(zip(_NAMES, standing.tensors(), strict=True))
    tensors["rows"] = tensors["rows"].to(torch.int32)
    if standing.weights is not None:
        tensors["weights"] = standing.weights.contiguous()
    tensors |= {"codes": torch.from_numpy(clicks.codes.astype(np.int32)), "offsets": torch.from_numpy(clicks.offsets)}
    write_tensors(path, tensors, {"kind": "users", "model": fingerprint(model)})


def read_users(path: str | Path, model: object, items: int, snapshot: Snapshot) -> tuple[Clicks, Standing]:
    """Users that :func:`write_users` wrote.

    Args:
        path: the file.
        model: that they should belong to.
        items: I of its catalogue.
        snapshot: of the model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds something else, or belongs to another model.
    """
    tensors, header = read_tensors(path)
    if header.get("kind") != "users":
        raise ValueError(f"{path}: expected kind 'users', got {short(header.get('kind'))}; load() reads a model")
    if not isinstance(model, MML) or header.get("model") != fingerprint(model):
        raise ValueError(f"{path}: these users were adapted from another model; load that one, or adapt to them again")
    try:
        return _read(tensors, items, snapshot, next(iter(model.state_dict().values())).dtype)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its contents make no users ({error}); take another copy or adapt again") from error


def _read(tensors: dict[str, Tensor], items: int, snapshot: Snapshot, kind: torch.dtype) -> tuple[Clicks, Standing]:
    state, active, rows, corrections = (tensors[name] for name in _NAMES)
    codes, offsets = tensors["codes"], tensors["offsets"]
    users, weights, shape = len(state), tensors.get("weights"), snapshot.shape
    right = (
        (codes.dtype, codes.ndim) == (torch.int32, 1)
        and (offsets.dtype, offsets.shape) == (torch.int64, (users + 1,))
        and offsets[0] == 0
        and offsets[-1] == len(codes)
        and bool((offsets.diff() >= 0).all())
        and state.shape == (users, *shape)
        and state.dtype == corrections.dtype
        and state.dtype in (kind, torch.float32 if kind.itemsize < 4 else kind)
        and (active.dtype, active.shape) == (torch.bool, (users, shape[0]))
        and rows.shape == corrections.shape
        and rows.shape[:2] == state.shape[:2]
        and rows.dtype == torch.int32
        and (weights is None or _are_weights(weights, users, snapshot.start()))
    )
    if not right:
        raise ValueError("the tensors do not belong together")
    least, most = (-1, -1) if not rows.numel() else (int(rows.min()), int(rows.max()))
    clicks = Clicks(codes.numpy().astype(np.int64), offsets.numpy())
    if least < -1 or clicks.codes.min(initial=1) < 1 or max(clicks.codes.max(initial=0), most) >= items:
        raise ValueError("they have clicked items that this model does not have; add the items first")
    return clicks, Standing(state, active, rows.long(), corrections, weights)


def _are_weights(given: Tensor, users: int, start: Tensor) -> bool:
    return given.shape == (users, *start.shape) and given.dtype == start.dtype
