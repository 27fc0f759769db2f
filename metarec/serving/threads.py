"""Many users on a CPU: parts of them are worked on in several threads, each with one core.

Lists are made of many short operations on few users. Where each of these is shared out over the cores, the cores mostly
wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def in_threads(work: Callable[[S], T], parts: Sequence[S], device: torch.device) -> list[T]:
    """The result of each part, in order: on a CPU by as many threads as torch has; the first part by the caller's.

    What is computed once and kept is there when the other threads begin. They see the caller's gradient and inference
    mode; under autocast, which is of one thread, the caller does all.

    Args:
        work: on one part; several threads may call it at the same time.
        parts: of the users.
        device: where it works.

    Example:
        >>> in_threads(lambda part: 2 * part, [1, 2, 3], torch.device("cpu"))
        [2, 4, 6]
    """
    threads = min(torch.get_num_threads(), len(parts) - 1)
    if threads < 2 or device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return [work(part) for part in parts]
    found, before = [work(parts[0])], torch.get_num_threads()
    grads, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def one(part: S) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(grads):
            return work(part)

    pool = ThreadPoolExecutor(threads, "metarec lists", initializer=torch.set_num_threads, initargs=(1,))
    try:
        return found + list(pool.map(one, parts[1:]))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # of threads to come
