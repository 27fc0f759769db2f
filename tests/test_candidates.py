"""Candidate scores against loops over users and items, and samples against the whole catalogue."""

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


def test_of_a_large_catalogue_the_best_are_candidates_and_some_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, batch = tables(), users(40)
    every = candidate_scores(methods, WARM, [batch])
    monkeypatch.setattr(
        "metarec.recipes.candidates.CANDIDATES", 16
    )  # the two best of each of three methods, and the target
    some = candidate_scores(methods, WARM, batch.chunks(7))
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


def _same(column: Tensor, columns: Tensor) -> list[int]:
    return (columns == column).all(1).nonzero().squeeze(1).tolist()
