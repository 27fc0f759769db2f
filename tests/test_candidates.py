"""Candidate scores against loops over users and items, and samples against the whole catalogue."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.recipes.candidates import candidate_scores
from score_tables import ITEMS, WARM, tables, users


def test_what_is_observed_is_what_the_methods_say() -> None:
    methods, batch = tables(), users(9)
    query = batch.query
    found = candidate_scores(methods, WARM, batch.chunks(4))
    asked = [row for row in range(9) if 1 not in query.history[row]]  # no list without seen items shows the others
    whole = candidate_scores(methods, WARM, batch.chunks(4), exclude_seen=False)
    assert whole.user.tolist() == list(range(9)) != asked and bool((whole.log_importance[:, 1:] == 0).all())
    assert found.names == ("a", "b", "c") and found.user.tolist() == asked
    assert found.target.tolist() == [1] * len(asked)
    for row, user in enumerate(asked):
        clicks = [i for i in query.history[user].tolist() if i]
        for s, part in enumerate(methods.values()):
            raw, known = part.table[clicks[-1]], part.known  # type: ignore[attr-defined]
            z = torch.where(known, (raw - raw[known].mean()) / raw[known].std(correction=0), 0.0)
            torch.testing.assert_close(found.z[row, s], z)
            assert torch.equal(found.unknown[row, s], ~known)
        expected = {0, *clicks}
        assert set(found.log_importance[row].nonzero().squeeze(1).tolist()) == expected
        assert found.log_importance[row].exp().sum() == ITEMS + 1 - len(expected)
    half = whole.on(torch.arange(9) < 4).of(["c", "a"])
    assert torch.equal(half.z, whole.z[:4, [2, 0]]) and half.names == ("c", "a")
    assert torch.equal(half.unknown, whole.unknown[:4, [2, 0]])


def test_of_a_large_catalogue_the_best_are_candidates_and_some_for_all_others() -> None:
    methods, batch = tables(), users(40)
    every = candidate_scores(methods, WARM, [batch])
    some = candidate_scores(methods, WARM, batch.chunks(7), most=16)  # the two best of each of three, and the target
    assert some.z.shape == (len(every.z), 3, 16) and torch.equal(some.context, every.context)
    for row in range(len(every.z)):
        candidates = [code for column in some.z[row].T for code in _same(column, every.z[row].T)]
        assert len(set(candidates)) == 16, "each is an item of its own"
        allowed = every.log_importance[row] == 0
        best = every.z[row].masked_fill(~allowed, -torch.inf).topk(2).indices.flatten().tolist()
        alone = {code for code, log in zip(candidates, some.log_importance[row].tolist(), strict=True) if log == 0}
        assert alone == {*best, int(every.target[row])}
        assert candidates[int(some.target[row])] == int(every.target[row])
        torch.testing.assert_close(some.log_importance[row].exp().sum(), allowed.sum().float())
        torch.testing.assert_close(some.unknown[row], every.unknown[row][:, candidates])


@pytest.mark.parametrize("most", [8192, 16])
def test_what_could_not_be_clicked_is_no_candidate(most: int) -> None:
    methods, batch, items = tables(), users(40), torch.arange(ITEMS + 1) % 3 > 0
    every = candidate_scores(methods, WARM, [batch], exclude_seen=False)
    some = candidate_scores(methods, WARM, [batch], items=items, exclude_seen=False, most=most)
    allowed = set(items.nonzero().squeeze(1).tolist())
    for row in range(len(every.z)):
        taken = some.log_importance[row] > -1e8
        candidates = {code for column in some.z[row].T[taken] for code in _same(column, every.z[row].T)}
        target = int(every.target[row])
        assert candidates <= allowed | {target} and target in candidates
        total = some.log_importance[row][taken].exp().sum()
        torch.testing.assert_close(total, torch.tensor(float(len(allowed | {target}))))


def _same(column: Tensor, columns: Tensor) -> list[int]:
    return (columns == column).all(1).nonzero().squeeze(1).tolist()


def test_ndcg_is_that_of_all_items_where_all_are_candidates() -> None:
    methods, batch = tables(), users(40)
    seen = candidate_scores(methods, WARM, [batch])
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(seen.z.shape[0], seen.z.shape[2], generator=draw).mul(4).round()  # with ties
    for row, found in enumerate(seen.ndcg(scores)):
        allowed = (seen.log_importance[row] == 0) & ~seen.unknown[row].all(0)
        own = scores[row, seen.target[row]]
        others = scores[row][allowed & (torch.arange(scores.shape[1]) != seen.target[row])]
        rank = 1 + float((others > own).sum()) + 0.5 * float((others == own).sum())
        known = not bool(seen.unknown[row].all(0)[seen.target[row]])
        assert float(found) == pytest.approx(1 / np.log2(1 + rank) if rank <= 10 and known else 0.0)


def test_a_candidate_counts_for_the_items_that_it_stands_for() -> None:
    methods, batch = tables(), users(40)
    some = candidate_scores(methods, WARM, [batch], most=16)
    scores = some.z[:, 0]
    for row, found in enumerate(some.ndcg(scores)):
        worth = some.log_importance[row].double().exp()
        above = (scores[row] > scores[row, some.target[row]]) & ~some.unknown[row].all(0)
        assert above[some.target[row]] == 0
        tied = (scores[row] == scores[row, some.target[row]]) & ~some.unknown[row].all(0)
        tied[some.target[row]] = False
        rank = 1 + float(worth[above].sum()) + 0.5 * float(worth[tied].sum())
        known = not bool(some.unknown[row].all(0)[some.target[row]])
        assert float(found) == pytest.approx(1 / np.log2(1 + rank) if rank <= 10 and known else 0.0)
