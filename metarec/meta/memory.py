"""Micro-batches of users by a memory budget, and batches split after an out-of-memory error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

import torch
from torch import nn

from metarec.types import Examples

CPU_BUDGET = 32 << 20  # about what the caches of a core still help with
COPIES = 2  # of the weights, beside those that each step keeps
ACTIVATIONS = 2  # floats kept for the backward pass per token, and input or output of a matrix

_LOG = logging.getLogger("metarec")
T = TypeVar("T", bound=Sized)
R = TypeVar("R")
Bytes = Callable[[nn.Module, Examples, int], int]


def bytes_per_user(view: nn.Module, support: Examples, graph_steps: int) -> int:
    """Memory of one user's inner loop, in bytes.

    Counts ``COPIES`` of the adapting weights, one more per kept step, and the activations of its forward and backward
    pass: those of matrices, and the vectors of the items that it compares with.
    """
    parameters = list(view.parameters())
    weights = sum(p.numel() for p in parameters)
    per_step = activations(view, support.history.shape[-1], compared(support)) + weights
    size = parameters[0].element_size() if parameters else 4
    return max(1, size * (COPIES * weights + graph_steps * per_step))


def compared(examples: Examples) -> int:
    """How many targets and negatives one user has."""
    return examples.target.shape[-1] * (1 + examples.negatives.shape[-1])


def activations(view: nn.Module, length: int, vectors: int) -> int:
    """Floats that one user's forward and backward pass keeps.

    Args:
        view: what reads a history.
        length: of the history.
        vectors: of targets and negatives.
    """
    matrices = [p for p in view.parameters() if p.ndim > 1]
    width = min((p.shape[-1] for p in matrices), default=1)
    sizes = sum(p.shape[-2] + p.shape[-1] for p in matrices)
    return ACTIVATIONS * (length * sizes + vectors * width)


def users_in_budget(
    view: nn.Module, support: Examples, graph_steps: int, budget: int | None = None, each: Bytes = bytes_per_user
) -> int:
    """Batch size that a memory budget allows: users adapted at once.

    Args:
        view: one user's task.
        support: of all users; its shape says how long they are.
        graph_steps: inner steps whose graphs are alive at once.
        budget: bytes; default half of the free memory of a GPU, 32 MiB on a CPU.
        each: bytes of one user, from the other three arguments.

    Returns:
        at least 1.
    """
    if budget is None:
        budget = free(support.history.device) // 2 if support.history.is_cuda else CPU_BUDGET
    return max(1, int(budget // each(view, support, graph_steps)))


def chunk_sizes(
    view: nn.Module, support: Examples, graph_steps: int, budget: int | None = None, each: Bytes = bytes_per_user
) -> list[int]:
    """Micro-batch sizes: users to adapt at once, as many as fit by the longest history of each chunk.

    Where longer histories come first, as the sampler puts them, later chunks are larger. If all fit at once, nothing is
    looked at but shapes: no GPU is waited for.

    Args:
        view: one user's task.
        support: of all users.
        graph_steps: inner steps whose graphs are alive at once.
        budget: bytes; see :func:`users_in_budget`.
        each: bytes of one user; see :func:`users_in_budget`.

    Returns:
        sizes that add up to the number of users.
    """
    if 0 < len(support) <= users_in_budget(view, support, graph_steps, budget, each):
        return [len(support)]
    sizes: list[int] = []
    start = 0
    while start < len(support):
        rest = support[start:].trim()
        sizes.append(min(len(rest), users_in_budget(view, rest, graph_steps, budget, each)))
        start += sizes[-1]
    return sizes


def split_to_fit(work: Callable[[T], R], users: T, split: Callable[[T], Iterable[T]]) -> Iterator[tuple[T, R]]:
    """Results for a batch of users, split in two after each out-of-memory error of the GPU; the log says so.

    Args:
        work: computes the result for users that fit into memory.
        users: the whole batch.
        split: splits a batch in two.

    Yields:
        parts of the batch with their results, in order.

    Raises:
        torch.OutOfMemoryError: if one user alone is too many.
    """
    found: tuple[R] | None = None
    try:
        found = (work(users),)
    except torch.OutOfMemoryError:
        if len(users) == 1:
            raise
    if found is not None:
        yield users, found[0]
        return
    _LOG.warning("out of memory with %d users at once: split in two", len(users))
    torch.cuda.empty_cache()
    for part in split(users):
        yield from split_to_fit(work, part, split)


def split_range(users: range) -> tuple[range, range]:
    """Split a range of consecutive users in two."""
    middle = -(-len(users) // 2)
    return users[:middle], users[middle:]


def free(device: torch.device) -> int:
    """Free GPU memory in bytes, with what torch's caching allocator can reuse, up to what the process may take."""
    used, (unused, total) = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)
    told = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # since torch 2.8
    allowed = total if told is None else int(told(device) * total)
    return min(unused + torch.cuda.memory_reserved(device) - used, allowed - used)
