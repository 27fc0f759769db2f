"""A queue that lets requests of the same moment be computed together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

_SHARE = 0.25  # of the time of a batch that the next one may gather for at most, after it
_LOOKS = 5  # within that time: a batch begins when nobody has come since the last one
T = TypeVar("T")
R = TypeVar("R")
C = TypeVar("C")


class QueueFullError(Exception):
    """So much is waiting that this would have to wait too long."""


class Batcher(Generic[T, R]):
    """Collects jobs while the worker is busy, and hands them to it together.

    One worker thread computes; everything given to :meth:`call` or :meth:`submit` runs there, one after the other.
    The batch that runs is the time in which the next one gathers; an idle worker begins at once, with what is there.

    Args:
        work: jobs to results, in the same order; an exception among the results is raised to whom it belongs.
        max_batch: jobs at once.
        waiting: jobs whose result is not there yet, at most.
        observe: told the size of each batch.

    Example:
        >>> async def twice():
        ...     batcher = Batcher(lambda numbers: [2 * n for n in numbers], max_batch=8)
        ...     async with batcher:
        ...         return await asyncio.gather(batcher.submit([1, 2]), batcher.submit([3]))
        >>> asyncio.run(twice())
        [[2, 4], [6]]
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch: int = 64,
        waiting: int = 1024,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        if max_batch < 1 or waiting < 1:
            raise ValueError(f"Batcher: max_batch and waiting must be at least 1, got {max_batch} and {waiting}")
        self.work, self.observe = work, observe
        self.max_batch, self.waiting = max_batch, waiting
        self._jobs: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._open = 0
        self._some = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Batcher[T, R]:
        self._thread = ThreadPoolExecutor(1, "metarec-model")
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Answer what is waiting, then stop."""
        self._closing = True
        self._some.set()
        await self._task
        self._thread.shutdown()

    def __len__(self) -> int:
        """Jobs whose result is not there yet."""
        return self._open

    async def submit(self, jobs: Sequence[T]) -> list[R | Exception]:
        """The results of some jobs, which may be computed together with those of others.

        Raises:
            QueueFullError: if too many jobs are waiting already, or the queue is closing.
        """
        if self._closing or self._open + len(jobs) > self.waiting:
            raise QueueFullError(f"{self._open} users are waiting, and at most {self.waiting} may; try again")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in jobs]
        for future in futures:
            future.add_done_callback(self._closed)
        self._open += len(jobs)
        self._jobs.extend(zip(jobs, futures, strict=True))
        self._some.set()
        if len(futures) == 1:
            return [await _outcome(futures[0])]
        out = await asyncio.gather(*futures, return_exceptions=True)
        return [_checked(result) for result in out]

    async def call(self, function: Callable[[], C]) -> C:
        """What a function returns, called in the worker between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def wait(self, function: Callable[[], C]) -> C:
        """As :meth:`call`, for another thread, which waits."""
        return self._thread.submit(function).result()

    def _closed(self, future: asyncio.Future[R]) -> None:
        self._open -= 1

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            while self._jobs:
                start = time.perf_counter()
                await self._batch()
                await self._gathered(_SHARE * (time.perf_counter() - start))
            if self._closing:
                return
            self._some.clear()

    async def _gathered(self, seconds: float) -> None:
        """Wait while clients who have just been answered ask again, so long as they do."""
        for _ in range(_LOOKS):
            before = len(self._jobs)
            await asyncio.sleep(seconds / _LOOKS)
            if len(self._jobs) in (before, self.max_batch):
                return

    async def _batch(self) -> None:
        """Compute what has gathered. A job that nobody waits for any more is left out."""
        batch: list[tuple[T, asyncio.Future[R]]] = []
        while self._jobs and len(batch) < self.max_batch:
            job, future = self._jobs.popleft()
            if not future.done():
                batch.append((job, future))
        if not batch:
            return
        self.observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self.work, [job for job, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


async def _outcome(future: asyncio.Future[R]) -> R | Exception:
    """A result or an exception, of one job as of many."""
    try:
        return await future
    except Exception as error:
        return error


def _checked(result: R | BaseException) -> R | Exception:
    """A result or an exception; what is worse than an exception is raised."""
    if isinstance(result, BaseException) and not isinstance(result, Exception):
        raise result
    return result
