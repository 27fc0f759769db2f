"""Lists of many users in several threads: those that one thread makes, and nothing of the caller's changes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import metarec as mr
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import Ensemble, Transitions, sasrec
from metarec.serving.threads import in_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_parts_are_worked_on_in_order_by_threads_of_one_core() -> None:
    seen: dict[int, tuple[int, int]] = {}
    both = threading.Barrier(2, timeout=60)

    def work(part: int) -> int:
        seen[part] = threading.get_ident(), torch.get_num_threads()
        if part in {1, 2}:
            both.wait()  # is passed only if two threads are at work
        return part * part

    assert in_threads(work, range(40), CPU) == [n * n for n in range(40)]
    assert seen[0] == (threading.get_ident(), 2)
    assert threading.get_ident() not in {ident for part, (ident, _) in seen.items() if part}
    assert {threads for part, (_, threads) in seen.items() if part} == {1}
    assert torch.get_num_threads() == 2
    fresh: list[int] = []
    later = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert fresh == [2]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("grads", [False, True])
def test_threads_see_the_modes_of_the_caller(*, inference: bool, grads: bool) -> None:
    with torch.inference_mode(inference), torch.set_grad_enabled(grads):
        found = in_threads(lambda _: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()), range(9), CPU)
    assert set(found) == {(inference, grads)}


def test_under_autocast_the_caller_does_all() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_threads(lambda _: threading.get_ident(), range(9), CPU)
    assert set(found) == {threading.get_ident()}


def test_an_error_is_raised_and_the_threads_of_the_caller_stay() -> None:
    def work(part: int) -> int:
        if part == 5:
            raise LookupError("five")
        return part

    with pytest.raises(LookupError, match="five"):
        in_threads(work, range(2000), CPU)
    assert torch.get_num_threads() == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("metarec lists")]


def test_lists_of_many_users_are_those_of_one_at_a_time() -> None:
    data = planted(users=700, items=60)
    up, _ = mr.split_by_time(data, at=PLANTED_SPLIT)
    parts = {"SASRec": sasrec.build(up, ("id", "text"), dim=8).eval(), "transitions": Transitions(up)}
    model = Ensemble(parts, up).eval()
    with torch.no_grad():
        model.weights.weight[0] = torch.tensor([0.7, 0.3])
    recommender = mr.Recommender(model)
    ids, offsets = data.catalog.items.ids, data.offsets
    histories = [[ids[code - 1] for code in data.item[a:b][:5]] for a, b in itertools.pairwise(offsets)]
    assert len(histories) == 700  # more parts than threads
    found = recommender.adapt(histories).recommend(k=5)
    torch.set_num_threads(1)
    expected = recommender.adapt(histories).recommend(k=5)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    for row in range(0, 700, 97):
        alone = recommender.adapt(histories[row]).recommend(k=5)
        assert [item.id for item in found[row]] == [item.id for item in alone]
