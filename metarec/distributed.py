"""Several processes, one per GPU, that train one model: users are spread over them, gradients are added up.

``torchrun --nproc-per-node 2 script.py`` starts a script twice. One line in it, :func:`start`, joins the processes; the
recipes do the rest. Each process takes every n-th user of a batch, which spreads long and short histories evenly, as
batches come with the longest first. Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from metarec.types import EpisodeBatch

Batch = TypeVar("Batch", EpisodeBatch, Tensor)
T = TypeVar("T")
PIECE = 1 << 26  # bytes of rows that are sent at once
_MESHES: dict[str, DeviceMesh] = {}


def start(device: torch.device | str) -> torch.device:
    """Join the processes that torchrun started; without torchrun, do nothing.

    Args:
        device: any GPU, and each process takes its own (NCCL); or the CPU (gloo).

    Returns:
        the device of this process.

    Raises:
        ValueError: if torchrun started more processes than this machine has GPUs.

    Example:
        >>> start("cpu"), processes(), is_first()
        (device(type='cpu'), 1, True)
    """
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return device
    if device.type == "cuda":
        own, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= found:
            raise ValueError(f"process {own} of this machine has no GPU, there are {found}: --nproc-per-node {found}")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    # Its defaults keep the processes' group if it exists at their import, as by an optimizer, and so gloo's threads.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> bool:
    """Leave the other processes; all must call it. True in the one that goes on alone, which is the first."""
    first = is_first()
    if distributed.is_initialized():
        distributed.barrier()
        for mesh in _MESHES.values():  # which keep the group, whose threads end with it
            vars(mesh).get("_pg_registry", {}).clear()
        _MESHES.clear()
        distributed.destroy_process_group()  # a thread of gloo that holds a tensor when Python ends aborts the process
    return first


def mesh_of(kind: str) -> DeviceMesh:
    """All processes in a row, each with a device of a kind, as DTensors want them."""
    if kind not in _MESHES:
        _MESHES[kind] = init_device_mesh(kind, (processes(),))
    return _MESHES[kind]


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own() -> slice:
    """Which users of a batch this process takes: every n-th. It may be none."""
    return slice(rank(), None, processes())


def share(batch: Batch) -> Batch:
    """The part of a batch that this process takes."""
    if isinstance(batch, Tensor):
        return batch[own()]
    return EpisodeBatch(batch.user[own()], batch.support[own()], batch.query[own()])


def backward(add: Callable[[Batch], float | Tensor], batch: Batch, parameters: Sequence[nn.Parameter]) -> float:
    """The gradient of a batch's mean loss in every process, each having computed the part of its own users.

    Args:
        add: adds the gradient of the mean loss of some users to ``.grad`` and returns that loss.
        batch: all users of the step, the same in every process.
        parameters: what has gradients, none so far.

    Returns:
        the mean loss of the whole batch.
    """
    return float(backward_own(add, share(batch), parameters)[0])


def backward_own(
    add: Callable[[Batch], float | Tensor], batch: Batch, parameters: Sequence[nn.Parameter]
) -> tuple[float | Tensor, int]:
    """As :func:`backward`, given this process's own users, of whom there may be none.

    Returns:
        the mean loss of the users of all processes, as ``add`` gives it where there is one, and how many they are.
    """
    sharded = any(map(is_sharded, parameters))
    loss = add(batch) if len(batch) or sharded else 0.0  # whose rows lie elsewhere, takes part in every step
    if processes() == 1:
        return loss, len(batch)
    return _add_up([p for p in parameters if not is_sharded(p)], loss, len(batch), parts=sharded)


def _add_up(parameters: Sequence[nn.Parameter], loss: float | Tensor, users: int, *, parts: bool) -> tuple[float, int]:
    """Means of gradients and losses over the users of all processes, in one message; and how many they are.

    A parameter that has no gradient in any process is left without one: an optimizer treats that otherwise than zero.

    Args:
        parameters: with gradients of this process.
        loss: of this process.
        users: of this process.
        parts: whether loss and gradients are parts, whose sum is the mean; else they are means over its own users.
    """
    weight = 1 if parts else users
    trained = [p for p in parameters if p.requires_grad]
    mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    lost = torch.as_tensor(loss, dtype=mine[0].dtype, device=mine[0].device)
    message = torch.cat([*(gradient.flatten() for gradient in mine), lost.view(1)])
    found = [float(p.grad is not None) for p in trained]
    message = torch.cat([message.mul_(weight), message.new_tensor([*found, weight, users])])
    distributed.all_reduce(message)
    *gradients, losses, flags, counts = message.split([*(p.numel() for p in trained), 1, len(trained), 2])
    (weights, total), total_loss = counts.tolist(), float(losses)
    divisor = 1.0 if parts else weights
    for parameter, gradient, anywhere in zip(trained, gradients, flags.tolist(), strict=True):
        parameter.grad = gradient.div_(divisor).view_as(parameter) if anywhere else None
    return total_loss / divisor, int(total)


def spread(compute: Callable[[EpisodeBatch], Sequence[Tensor]], batch: EpisodeBatch) -> list[Tensor]:
    """Tensors (B, ...) about the users of a batch, in every process, each having computed those of its own users."""
    if len(batch) < processes() or processes() == 1:
        return list(compute(batch))
    return [_joined(values, len(batch)) for values in compute(share(batch))]


def _joined(values: Tensor, users: int) -> Tensor:
    kind = torch.uint8 if values.dtype == torch.bool else values.dtype
    out = torch.zeros(users, *values.shape[1:], dtype=kind, device=values.device)
    out[own()] = values.to(out.dtype)
    distributed.all_reduce(out)
    return out.to(values.dtype)


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes."""
    if processes() > 1:
        value = value.contiguous()  # what is sent is memory, in whatever order it lies
        distributed.all_reduce(value)
    return value


def copy_first(module: nn.Module) -> None:
    """Give every process the weights of the first; rows of a sharded table stay where they are."""
    if processes() > 1:
        for tensor in module.state_dict().values():
            if is_sharded(tensor):
                continue
            sent = tensor.contiguous()  # what is sent is memory, in whatever order it lies
            distributed.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor's rows lie in several processes: a DTensor, which takes a second to import."""
    engine = sys.modules.get("torch.distributed.tensor")
    return engine is not None and isinstance(tensor, engine.DTensor)


def own_rows(tensor: Tensor) -> Tensor:
    """The rows of a tensor that are here: all, but for a sharded one."""
    own: Any = tensor
    out: Tensor = own.to_local() if is_sharded(tensor) else own
    return out


def rows_in_first(rows: Tensor, size: int, each: int) -> Tensor | None:
    """The rows of all processes, one after another, on the CPU of the first; None in the others.

    They are sent in pieces, so that no GPU needs room for all of them.

    Args:
        rows: (r, ...) of this process.
        size: of all processes together.
        each: of a process, where the last may have fewer.
    """
    whole = rows.new_empty(size, *rows.shape[1:], device="cpu") if is_first() else None
    step = max(1, PIECE // (rows[:1].numel() * rows.itemsize))
    for start in range(0, size, each):
        for at in range(start, min(start + each, size), step):
            here = slice(at - start, min(at - start + step, each, size - start))
            if start // each == rank():
                piece = rows[here].contiguous()
                if whole is None:
                    distributed.send(piece, dst=0)
            elif whole is not None:
                piece = rows.new_empty(here.stop - here.start, *rows.shape[1:])
                distributed.recv(piece, src=start // each)
            if whole is not None:
                whole[at : at + len(piece)] = piece
    return whole


def from_first(read: Callable[[], T]) -> T:
    """What the first process reads, in every process."""
    if processes() == 1:
        return read()
    found: list[Any] = [read() if is_first() else None]
    distributed.broadcast_object_list(found, src=0)
    out: T = found[0]
    return out
