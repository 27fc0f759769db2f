"""prefetched against the same batches without it, and its thread against the list of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from metarec.data import EpisodeSampler
from metarec.data.prefetch import prefetched
from metarec.datasets import planted


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetched")]


class Counted:
    """0, 1, 2, ... n-1, and how far it came, on which threads."""

    def __init__(self, n: int, fail_at: int | None = None) -> None:
        self.made, self.n, self.fail_at = 0, n, fail_at
        self.changed = threading.Condition()
        self.threads: set[str] = set()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.n):
            if number == self.fail_at:
                raise LookupError(f"number {number} is missing")
            with self.changed:
                self.made += 1
                self.threads.add(threading.current_thread().name)
                self.changed.notify_all()
            yield number


@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_the_same_batches_in_the_same_order(n: int, ahead: int) -> None:
    source = Counted(n)
    assert list(prefetched(source, ahead)) == list(range(n))
    assert len(source.threads) == min(n, 1)
    assert threading.current_thread().name not in source.threads
    assert threads() == []


def test_the_episodes_are_those_of_the_sampler() -> None:
    sampler = EpisodeSampler(planted(users=50, items=40), seed=3, users_per_batch=8, negatives=2)
    plain, ahead = list(sampler.epoch(4)), list(prefetched(sampler.epoch(4)))
    assert len(plain) == len(ahead) == 7
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(one.user, other.user)
        for part in ("support", "query"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert all(map(torch.equal, mine.tensors(), theirs.tensors()))


@pytest.mark.parametrize("ahead", [1, 3])
def test_so_many_are_ready_and_no_more(ahead: int) -> None:
    source = Counted(20)
    batches = prefetched(source, ahead)
    assert threads() == []  # nothing starts before the first is asked for
    for taken in range(1, 5):
        next(batches)
        with source.changed:
            assert source.changed.wait_for(lambda: source.made == taken + ahead, timeout=60)  # noqa: B023
    batches.close()
    assert source.made == 4 + ahead


@pytest.mark.parametrize("fail_at", [0, 1, 5])
def test_an_error_comes_where_its_batch_would_have(fail_at: int) -> None:
    seen = []
    with pytest.raises(LookupError, match=f"number {fail_at} is missing"):
        seen.extend(prefetched(Counted(9, fail_at)))
    assert seen == list(range(fail_at))
    assert threads() == []


def test_the_thread_ends_when_the_consumer_stops_early() -> None:
    for number in prefetched(Counted(1000)):
        if number == 3:
            break
    assert threads() == []
    with pytest.raises(ZeroDivisionError):
        [1 // number for number in prefetched(Counted(1000))]
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, -1])
def test_at_least_one_is_made_ready(ahead: int) -> None:
    with pytest.raises(ValueError, match=rf"ahead .*least 1, got {ahead}"):
        prefetched([], ahead)
