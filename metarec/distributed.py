"""Several processes, one per GPU, that train one model: users are spread over them, gradients are added up.

``torchrun --nproc-per-node 2 script.py`` starts a script twice. One line in it, :func:`start`, joins the processes; the
recipes do the rest. Each process takes every n-th user of a batch, which spreads long and short histories evenly, as
batches come with the longest first. Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from metarec.types import EpisodeBatch

Batch = TypeVar("Batch", EpisodeBatch, Tensor)
T = TypeVar("T")


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
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> bool:
    """Leave the other processes; all must call it. True in the one that goes on alone, which is the first."""
    first = is_first()
    if distributed.is_initialized():
        distributed.barrier()  # or a thread of gloo may still hold a tensor when Python ends, and abort the process
        distributed.destroy_process_group()
    return first


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return _rank() == 0


def own() -> slice:
    """Which users of a batch this process takes: every n-th. It may be none."""
    return slice(_rank(), None, processes())


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
    loss = add(batch) if len(batch) else 0.0
    return (loss, len(batch)) if processes() == 1 else _add_up(parameters, float(loss), len(batch))


def _add_up(parameters: Sequence[nn.Parameter], loss: float, users: int) -> tuple[float, int]:
    """Means of gradients and losses over the users of all processes, in one message; and how many they are.

    A parameter that has no gradient in any process is left without one: an optimizer treats that otherwise than zero.
    """
    trained = [p for p in parameters if p.requires_grad]
    mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    message = torch.cat([gradient.flatten() for gradient in mine]).mul_(users)
    found = [float(p.grad is not None) for p in trained]
    message = torch.cat([message, message.new_tensor([*found, loss * users, users])])
    distributed.all_reduce(message)
    parts = message.split([*(p.numel() for p in trained), len(trained), 2])
    total_loss, total = parts[-1].tolist()
    for parameter, gradient, anywhere in zip(trained, parts[:-2], parts[-2].tolist(), strict=True):
        parameter.grad = gradient.div_(total).view_as(parameter) if anywhere else None
    return total_loss / total, int(total)


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
    """Give every process the weights of the first."""
    if processes() > 1:
        for tensor in module.state_dict().values():
            sent = tensor.contiguous()  # what is sent is memory, in whatever order it lies
            distributed.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


def from_first(read: Callable[[], T]) -> T:
    """What the first process reads, in every process."""
    if processes() == 1:
        return read()
    found: list[Any] = [read() if is_first() else None]
    distributed.broadcast_object_list(found, src=0)
    out: T = found[0]
    return out


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0
