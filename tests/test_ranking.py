"""Ranks and ranking metrics against sorting, a hand-written table and torchmetrics."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarec.functional.ranking import mrr_at, ndcg_at, ranks, recall_at

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchvision's, which torchmetrics imports, about its image library
    from torchmetrics.retrieval import RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall


def test_ranks_without_ties_are_the_place_in_the_sorted_list() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(30, generator=rng) for _ in range(24)]).double().reshape(4, 6, 30)
    target = torch.randint(0, 30, (4, 6), generator=rng)
    allowed = torch.rand(4, 6, 30, generator=rng) < 0.6
    found, masked = ranks(scores, target), ranks(scores, target, allowed=allowed)
    for where in np.ndindex(4, 6):
        order = scores[where].argsort(descending=True).tolist()
        own = int(target[where])
        assert found[where] == order.index(own) + 1
        kept = [c for c in order if allowed[where][c] or c == own]
        assert masked[where] == kept.index(own) + 1


@pytest.mark.parametrize(
    ("scores", "target", "rank"),
    [
        ([1, 2, 3, 4], 3, 1.0),
        ([1, 2, 3, 4], 0, 4.0),
        ([5, 5, 5, 5], 2, 2.5),  # the mean of 1, 2, 3, 4
        ([9, 5, 5, 1], 1, 2.5),  # the mean of 2, 3
        ([9, 9, 5, 5, 5], 4, 4.0),  # the mean of 3, 4, 5
        ([0] * 20, 0, 10.5),
        ([7], 0, 1.0),
    ],
)
def test_ties_count_at_their_mean_rank(scores: list[int], target: int, rank: float) -> None:
    assert ranks(torch.tensor(scores, dtype=torch.float32), torch.tensor(target)).item() == rank


def test_a_mask_is_broadcast_and_never_removes_the_target() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    allowed = torch.tensor([False, False, True, True])
    assert ranks(scores, torch.tensor([1, 0]), allowed=allowed).tolist() == [2.5, 1.0]


def test_a_score_that_is_not_finite_is_refused_only_where_it_takes_part() -> None:
    scores = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, float("nan"), 3.0]]])
    target = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"score nan at \(1, 0, 1\) is not finite.*would rank first"):
        ranks(scores, target)
    with pytest.raises(ValueError, match="score inf at"):
        ranks(torch.tensor([1.0, float("inf")]), torch.tensor(0))
    allowed = torch.tensor([True, False, True])
    assert ranks(scores, target, allowed=allowed).tolist() == [[2.0], [2.0]]
    with pytest.raises(ValueError, match="not finite"):  # the target itself always takes part
        ranks(scores, target + 1, allowed=allowed)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"scores \(...,C\) and target \(...\), got \(2, 3\) and \(3,\)"):
        ranks(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"target 3 at \(1,\) .*columns 0..2"):
        ranks(torch.zeros(2, 3), torch.tensor([0, 3]))
    for metric in (recall_at, mrr_at, ndcg_at):
        with pytest.raises(ValueError, match=r"k .*least 1, got 0"):
            metric(torch.ones(2), 0)


def test_metrics_of_a_hand_written_table() -> None:
    rank = torch.tensor([1.0, 2.5, 10.0, 10.5, 11.0], dtype=torch.float64)
    assert recall_at(rank, 10).tolist() == [1, 1, 1, 0, 0]
    assert mrr_at(rank, 10).tolist() == [1, 0.4, 0.1, 0, 0]
    expected = [1, 1 / np.log2(3.5), 1 / np.log2(11), 0, 0]
    np.testing.assert_allclose(ndcg_at(rank, 10).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_metrics_agree_with_torchmetrics(k: int) -> None:
    users, items = 60, 25
    scores = torch.rand(users, items, generator=torch.Generator().manual_seed(k))
    target = torch.randint(0, items, (users,), generator=torch.Generator().manual_seed(k + 1))
    relevant = torch.zeros(users, items, dtype=torch.bool).scatter(1, target[:, None], value=True)
    group = torch.arange(users).repeat_interleave(items)
    rank = ranks(scores, target)
    for metric, other in ((recall_at, RetrievalRecall), (mrr_at, RetrievalMRR), (ndcg_at, RetrievalNormalizedDCG)):
        theirs = other(top_k=k)(scores.flatten(), relevant.flatten(), indexes=group)
        torch.testing.assert_close(metric(rank, k).mean(), theirs)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_the_order_of_the_columns_does_not_matter(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    order = data.draw(st.permutations(range(len(scores))))
    values = torch.tensor(scores, dtype=torch.float32)
    shuffled = ranks(values[list(order)], torch.tensor(order.index(target)))
    assert shuffled == ranks(values, torch.tensor(target))
    # ranks of all candidates always share out 1 + 2 + ... + C
    every = ranks(values.expand(len(scores), -1), torch.arange(len(scores)))
    assert every.sum().item() == len(scores) * (len(scores) + 1) / 2
