"""Times of the targets in the episodes, and the part that adapts to every known click, against loops over users."""

from typing import Literal

import numpy as np
import pytest
import torch

from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.data.histories import Clicks
from metarec.data.sampler import EpisodeSampler
from metarec.data.support import SupportMaker
from metarec.types import Examples


def clicks(dtype: type = np.int64) -> Dataset:
    """Users of 1 to 7 clicks at times that tell every click apart."""
    rng = np.random.default_rng(3)
    count = np.array([1, 2, 3, 4, 5, 7, 6])
    user = np.repeat(np.arange(1, 8), count)
    return Dataset(
        users=Vocabulary([f"u{i}" for i in range(7)], "user"),
        catalog=Catalog(Vocabulary([f"i{i}" for i in range(9)])),
        user=user,
        item=rng.integers(1, 10, len(user)),
        time=(1_700_000_000 + np.arange(len(user)) * 7).astype(dtype),
        warm=np.arange(10) > 0,
    )


@pytest.mark.parametrize("part", ["train", "validation", "test", "serving"])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_each_example_carries_the_time_of_its_target(
    part: Literal["train", "validation", "test", "serving"], dtype: type
) -> None:
    data, seen = clicks(dtype), 0
    of = {int(t): (int(u), int(i)) for u, i, t in zip(data.user, data.item, data.time, strict=True)}
    for batch in EpisodeSampler(data, part=part, users_per_batch=3, queries=2).epoch(0):
        for examples in (batch.support, batch.query):
            assert examples.time is not None and examples.time.numpy().dtype == dtype
            for row, column in (examples.weight > 0).nonzero().tolist():
                user, item = of[int(examples.time[row, column])]
                before = examples.time[row, column] - examples.gap[row, column]
                assert of[int(before)] == (user, int(examples.history[row, examples.position[row, column]]))
                assert (user, item) == (int(batch.user[row]), int(examples.target[row, column]))
                seen += 1
            assert not examples.time[examples.weight == 0].any()
    assert seen > 8


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_serving_adapts_to_every_click_that_is_known(length: int) -> None:
    data = clicks()
    expected = {}
    for user in data.user_codes.tolist():
        own = data.item[data.user == user].tolist()
        if len(own) > 1:
            *known, target = own
            known = known[-length:]
            expected[user] = (known, known[1:], target)
    found = {}
    for batch in EpisodeSampler(data, part="serving", users_per_batch=4, max_length=length).epoch(0):
        for row, user in enumerate(batch.user.tolist()):
            support, query = batch.support[row : row + 1], batch.query[row : row + 1]
            known = query.history[0][: int(query.position[0, 0]) + 1].tolist()
            found[user] = (known, support.target[support.weight > 0].tolist(), int(query.target))
    assert found == expected


def test_short_histories_are_for_serving_alone() -> None:
    with pytest.raises(ValueError, match=r"max_length .*least 3, got 2"):
        EpisodeSampler(clicks(), part="test", max_length=2)
    with pytest.raises(ValueError, match=r"max_length .*least 1, got 0"):
        EpisodeSampler(clicks(), part="serving", max_length=0)


def test_times_follow_the_examples_and_are_unknown_for_new_users() -> None:
    batch = next(EpisodeSampler(clicks(), part="test").epoch(0))
    assert batch.query.time is not None
    order = torch.tensor([1, 0])
    picked = batch.to("cpu").query[order]
    assert picked.time is not None and torch.equal(picked.time, batch.query.time[order])
    trimmed = next(iter(batch.chunks(2))).support
    assert trimmed.time is not None and trimmed.time.shape == trimmed.target.shape
    assert SupportMaker(np.arange(10) > 0, 1, 50)(Clicks.join([np.array([1, 2])]))[1].time is None
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(B,S\).*'time': \(1, 2\)"):
        Examples(one, one, one, one[..., None], torch.ones(1, 1), torch.zeros(1, 2))
