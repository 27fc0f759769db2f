"""Prefetch batches in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from metarec.data.support import copied, sent
from metarec.types import EpisodeBatch

T = TypeVar("T")


class _End:
    """Stands behind the last batch."""


END: Final = _End()


def prefetched(batches: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """Prefetch batches, in the same order: one background thread makes them while earlier ones are in use.

    An error met while a batch is made is raised where that batch would have come. The thread starts with the first
    batch asked for and ends with the last, or when the iterator is closed.

    Args:
        batches: e.g. ``sampler.epoch(0)``. What it yields must not depend on what the consumer does.
        ahead: batches made ready at most, beside the one in use.

    Raises:
        ValueError: if ``ahead`` is less than 1.

    Example:
        >>> from metarec.data import EpisodeSampler
        >>> from metarec.datasets.planted import planted
        >>> sampler = EpisodeSampler(planted(users=30, items=40), users_per_batch=16)
        >>> [len(batch) for batch in prefetched(sampler.epoch(0))]
        [16, 14]
    """
    if ahead < 1:
        raise ValueError(f"prefetched: ahead must be at least 1, got {ahead}")
    return _prefetched(iter(batches), ahead)


def _prefetched(batches: Iterator[T], ahead: int) -> Iterator[T]:
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetched")
    try:
        waiting: deque[Future[T | _End]] = deque(worker.submit(next, batches, END) for _ in range(ahead))
        while not isinstance(batch := waiting.popleft().result(), _End):
            waiting.append(worker.submit(next, batches, END))
            yield batch
    finally:
        worker.shutdown(cancel_futures=True)


def sent_ahead(
    batches: Iterable[EpisodeBatch], device: torch.device, finish: Callable[[EpisodeBatch], EpisodeBatch]
) -> Iterator[EpisodeBatch]:
    """Batches on a device, sent and finished there ahead by a thread, in the order of what runs on a GPU's stream.

    Args:
        batches: on the CPU.
        device: where to.
        finish: what is to be done with a batch there.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def ready() -> Iterator[EpisodeBatch]:
        for batch in batches:
            with torch.cuda.stream(stream):
                there = EpisodeBatch(copied(batch.user, device), sent(batch.support, device), sent(batch.query, device))
                done = finish(there)
            yield done

    return prefetched(ready())
