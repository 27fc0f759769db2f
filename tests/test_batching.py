"""The queue: who is computed together, who gets what, and what happens at its edges."""

import asyncio
import threading

import pytest

from metarec.service.batching import Batcher, QueueFullError


class Worker:
    """Squares numbers, refuses 13, and waits for its gate; remembers what it was given at once."""

    def __init__(self):
        self.gate, self.batches = threading.Event(), []

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.gate.wait()
        return [ValueError("13") if n == 13 else n * n for n in numbers]


def test_what_comes_while_the_worker_is_busy_is_computed_together():
    async def story():
        async with Batcher(worker, max_batch=4) as batcher:
            first = asyncio.create_task(batcher.submit([0]))
            while not worker.batches:
                await asyncio.sleep(0.001)
            rest = [asyncio.create_task(batcher.submit([2 * i + 1, 2 * i + 2])) for i in range(3)]
            await asyncio.sleep(0)
            waiting = len(batcher)
            worker.gate.set()
            return waiting, await asyncio.gather(first, *rest), len(batcher)

    worker = Worker()
    waiting, results, after = asyncio.run(story())
    assert results == [[0], [1, 4], [9, 16], [25, 36]]
    assert worker.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert (waiting, after) == (7, 0)


def test_an_error_is_told_to_its_own_job_only():
    async def story():
        async with Batcher(worker) as batcher:
            return await asyncio.gather(batcher.submit([2, 13]), batcher.submit([3]))

    worker = Worker()
    worker.gate.set()
    [four, error], [nine] = asyncio.run(story())
    assert (four, str(error), nine) == (4, "13", 9)


def test_a_worker_that_breaks_tells_everyone_and_goes_on():
    def work(numbers):
        if 0 in numbers:
            raise ZeroDivisionError("by zero")
        return numbers

    async def story():
        async with Batcher(work) as batcher:
            return await batcher.submit([1, 0]), await batcher.submit([2])

    broken, fine = asyncio.run(story())
    assert [str(e) for e in broken] == ["by zero", "by zero"] and fine == [2]


def test_a_full_queue_refuses_at_once_and_takes_again_later():
    async def story():
        async with Batcher(worker, waiting=3) as batcher:
            task = asyncio.create_task(batcher.submit([1, 2]))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match=r"2 .*waiting.* 3 may"):
                await batcher.submit([3, 4])
            one = asyncio.create_task(batcher.submit([3]))
            worker.gate.set()
            return await task, await one, await batcher.submit([3, 4, 5])

    worker = Worker()
    assert asyncio.run(story()) == ([1, 4], [9], [9, 16, 25])


def test_a_job_that_nobody_waits_for_is_left_out():
    async def story():
        async with Batcher(worker) as batcher:
            first = asyncio.create_task(batcher.submit([1]))
            while not worker.batches:
                await asyncio.sleep(0.001)
            gone = asyncio.create_task(batcher.submit([2]))
            stays = asyncio.create_task(batcher.submit([3]))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            left = len(batcher)
            worker.gate.set()
            return left, await first, await stays

    worker = Worker()
    assert asyncio.run(story()) == (2, [1], [9])
    assert worker.batches == [[1], [3]]


def test_closing_answers_what_waits_and_takes_no_more():
    async def story():
        batcher = Batcher(worker, max_batch=1)
        async with batcher:
            tasks = [asyncio.create_task(batcher.submit([n])) for n in (1, 2, 3)]
            while not worker.batches:
                await asyncio.sleep(0.001)
            worker.gate.set()
        with pytest.raises(QueueFullError):
            await batcher.submit([4])
        return [await task for task in tasks]

    worker = Worker()
    assert asyncio.run(story()) == [[1], [4], [9]]


def test_an_idle_worker_begins_at_once_however_many_came_last_time():
    async def story():
        async with Batcher(worker) as batcher:
            worker.gate.set()
            await batcher.submit([1, 2, 3])
            worker.gate.clear()
            one = asyncio.create_task(batcher.submit([4]))
            while len(worker.batches) < 2:
                await asyncio.sleep(0)
            worker.gate.set()
            return await asyncio.gather(one, batcher.submit([5]))

    worker = Worker()
    assert asyncio.run(story()) == [[16], [25]]
    assert worker.batches == [[1, 2, 3], [4], [5]]


def test_sizes_are_told_and_settings_checked():
    async def story():
        async with Batcher(lambda n: n, observe=seen.append) as batcher:
            await batcher.submit([1, 2, 3])
            return await batcher.call(lambda: "between")

    seen = []
    assert asyncio.run(story()) == "between" and seen == [3]
    with pytest.raises(ValueError, match=r"max_batch .*waiting.* 1"):
        Batcher(lambda n: n, max_batch=0)
