"""User states in a file, bound to the weights that they were encoded with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from reprlib import repr as short

import numpy as np
import torch
from torch import Tensor, nn

from metarec.data.histories import Clicks
from metarec.files import checksum, read_tensors, write_tensors
from metarec.functional.kinds import items_of, kinds_of
from metarec.model import Model
from metarec.scoring import UserState

_CLICKS = ("codes", "offsets")
_UNKNOWN = -1.0  # what stands in a file for a gap that is not known; known ones are logs of at least 1


def fingerprint(model: Model) -> str:
    """A checksum over what decides a user's state; adding or removing items leaves it as it is."""
    if model.catalog is None or model.warm is None:
        raise TypeError(f"users of a {type(model).__name__} without a catalogue cannot be saved; attach(upstream)")
    size = model.catalog.size
    fitted = model.fitted or size
    own = {n: (t[:fitted] if t.ndim and len(t) == size else t).cpu() for n, t in _weights(model)}
    for name, modality in model.catalog.modalities.items():
        own |= {
            f"{name}.features": modality.features[:fitted].cpu(),
            f"{name}.present": modality.present[:fitted].cpu(),
        }
    own["warm"] = torch.from_numpy(np.asarray(model.warm)[:fitted])
    settings = repr(getattr(model, "config", type(model).__name__))
    return checksum(own, "\n".join((settings, *model.catalog.items.texts[: fitted - 1])))


def _weights(model: Model, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The weights of a model and its members; counts decide no state."""
    if isinstance(model, nn.Module):
        yield from ((prefix + name, tensor) for name, tensor in model.state_dict().items())
    for name, member in model.members().items():
        yield from _weights(member, f"{prefix}{name}/")


def write_users(path: str | Path, model: Model, clicks: Clicks, state: UserState) -> None:
    """Write users; see :meth:`Users.save <metarec.recommender.Users.save>`."""
    tensors = {name: _written(name, tensor) for name, tensor in state.tensors.items()}
    small = np.int32 if clicks.clicked is clicks else np.int64  # events of other kinds take more
    tensors |= {"codes": torch.from_numpy(clicks.codes.astype(small)), "offsets": torch.from_numpy(clicks.offsets)}
    write_tensors(path, tensors, {"kind": "users", "model": fingerprint(model)})


def _written(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a state as it stands in a file, which holds finite numbers only."""
    if _is_context(name):
        tensor = tensor.nan_to_num(nan=_UNKNOWN)
    return (tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor).contiguous()


def _is_context(name: str) -> bool:
    return name.rpartition("/")[2] == "context"


def read_users(path: str | Path, model: Model, empty: Callable[[bool], UserState]) -> tuple[Clicks, UserState]:
    """Users that :func:`write_users` wrote.

    Args:
        path: the file.
        model: the one that they should belong to, with the items that were added.
        empty: a user without clicks, N = 1, with kept weights or without.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds something else, or belongs to another model.
    """
    tensors, header = read_tensors(path)
    if header.get("kind") != "users":
        raise ValueError(f"{path}: expected kind 'users', got {short(header.get('kind'))}; load() reads a model")
    if header.get("model") != fingerprint(model):
        raise ValueError(f"{path}: these users were adapted from another model; load that one, or adapt to them again")
    try:
        kinds = 0 if model.catalog is None else len(model.catalog.kinds)
        return _read(tensors, len(model.item_mask()), kinds, empty)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its contents make no users ({error}); take another copy or adapt again") from error


def _read(
    tensors: dict[str, Tensor], items: int, kinds: int, empty: Callable[[bool], UserState]
) -> tuple[Clicks, UserState]:
    codes, offsets = (tensors.pop(name) for name in _CLICKS)
    users = len(offsets) - 1
    kind = int(kinds_of(codes.long()).max()) if codes.numel() else 0
    right = (
        codes.dtype == (torch.int64 if kind else torch.int32)
        and codes.ndim == 1
        and 0 <= kind < max(1, kinds)
        and (offsets.dtype, offsets.ndim) == (torch.int64, 1)
        and offsets[0] == 0
        and offsets[-1] == len(codes)
        and bool((offsets.diff() >= 0).all())
    )
    kept = any(name.rpartition("/")[2] == "weights" for name in tensors)
    like = empty(kept).tensors
    gone = [n for n, t in tensors.items() if n in ("rows", "corrections") and n not in like and not t.numel()]
    tensors = {name: t for name, t in tensors.items() if name not in gone}  # as they were written before
    if not right or set(tensors) != set(like):
        raise ValueError("the tensors do not belong together")
    out = {name: _like(tensor, like[name], users, name) for name, tensor in tensors.items()}
    out |= {name: t.masked_fill(t == _UNKNOWN, torch.nan) for name, t in out.items() if _is_context(name)}
    clicks = Clicks(codes.numpy().astype(np.int64), offsets.numpy())
    integers = [t for name, t in out.items() if t.dtype == torch.int64 or t.dtype == torch.int32]
    most = max((int(t.max()) for t in integers if t.numel()), default=0)
    least = min((int(t.min()) for t in integers if t.numel()), default=0)
    own = items_of(clicks.codes)
    if least < 0 or min(own.min(initial=1), clicks.codes.min(initial=1)) < 1 or max(own.max(initial=0), most) >= items:
        raise ValueError("they have clicked items that this model does not have; add the items first")
    return clicks, UserState(out)


def _like(given: Tensor, like: Tensor, users: int, name: str) -> Tensor:
    """A tensor of the file, if it is of the kind that the model makes; only the last dimension may be longer."""
    wanted = torch.int32 if like.dtype == torch.int64 else like.dtype
    fixed = given.shape[1:-1] == like.shape[1:-1] if given.ndim > 2 else True
    ragged = name.rpartition("/")[2] in ("history", "rows", "corrections")
    same = given.ndim == like.ndim and len(given) == users and fixed and (ragged or given.shape[1:] == like.shape[1:])
    if not same or given.dtype not in (wanted, torch.float32 if wanted.itemsize < 4 else wanted):
        raise ValueError(f"{name!r} is {given.dtype} {tuple(given.shape)}, expected {wanted} like {tuple(like.shape)}")
    if name.rpartition("/")[2] == "rows" and given.numel() and int(given.min()) >= -1:
        given = given.clamp(min=0)  # rows of old files are padded with -1
    return given.to(like.dtype)
