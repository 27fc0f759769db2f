"""Weights by context against weights that are known, and a loss written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.recipes.candidates import candidate_scores
from metarec.recipes.context_weights import ContextWeights
from metarec.recipes.user_context import user_context
from metarec.types import EpisodeBatch, Examples
from score_tables import EVERY, WARM, Table, random_weights, tables, users


def standardised(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """(n, S, I) standardised scores of the tables, and which items they do not know."""
    z, unknown = [], []
    for part in tables().values():
        raw, known = part.score(batch.query).scores[:, 0], part.known
        own = (raw - raw[:, known].mean(1, keepdim=True)) / raw[:, known].std(1, correction=0, keepdim=True)
        z.append(torch.where(known, own, 0))
        unknown.append(~known.expand_as(raw))
    return torch.stack(z, 1), torch.stack(unknown, 1)


def test_fitting_finds_the_weights_that_made_the_clicks() -> None:
    truth, batch = random_weights(), users(6000, seed=3)
    gap = batch.query.gap.log1p()  # type: ignore[union-attr]
    truth.usual.copy_(torch.stack([gap.mean(), gap.std()]))
    with torch.no_grad():
        z, unknown = standardised(batch)
        scores = truth.fuse(z, unknown, user_context(batch.query, WARM)[:, 0])
    seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, batch.query.history, value=True)
    seen[:, 0] = True
    drawn = torch.multinomial(scores.masked_fill(seen, -1e9).softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    query = replace(batch.query, target=drawn)
    found = ContextWeights(truth.names)
    seen = candidate_scores(tables(), WARM, [EpisodeBatch(batch.user, query, query)])
    found.fit(seen, penalty=1e-6, top=0, iterations=100)
    torch.testing.assert_close(found.usual, truth.usual)
    torch.testing.assert_close(found.weight, truth.weight, atol=0.2, rtol=0)
    torch.testing.assert_close(found.unknown[:, 1], truth.unknown[:, 1], atol=0.3, rtol=0)
    assert not found.unknown[:, [0, 2]].abs().gt(1e-3).any()  # nobody lacks an item there: the penalty keeps them at 0


def test_clicks_that_nobody_can_foresee_do_not_turn_the_weights() -> None:
    """Half of the clicks follow a method, half are drawn against it: the top of the list is still the method's."""
    batch = users(600, seed=5)
    table = Table(0, EVERY)
    scores = table.score(batch.query).scores[:, 0].clone()
    scores.scatter_(1, batch.query.history, -1e9)[:, 0] = -1e9
    order = scores.argsort(-1, descending=True)
    place = torch.where(torch.arange(600) % 2 == 0, 0, 20)  # the first of the list, or one far down
    query = replace(batch.query, target=order.gather(1, place[:, None]))
    seen = candidate_scores({"a": table}, WARM, [EpisodeBatch(batch.user, query, query)])
    weights = {}
    for top in (0.0, 0.4):
        found = ContextWeights(["a"], context=False)
        found.fit(seen, penalty=1e-6, top=top)
        weights[top] = found.weight[0, 0].item()
        tried = [_lost(w * seen.z[:, 0], seen.log_importance < 0, query.target, top) for w in np.linspace(0, 8, 81)]
        assert _lost(weights[top] * seen.z[:, 0], seen.log_importance < 0, query.target, top) <= min(tried) + 1e-4
    assert weights[0.4] > 2 * weights[0.0] > 0


def _lost(scores: Tensor, excluded: Tensor, target: Tensor, top: float) -> float:
    chance = scores.masked_fill(excluded, -1e9).softmax(-1).gather(1, target)
    return float((-chance.log() if top == 0 else (1 - chance**top) / top).mean())


def test_weights_hardly_depend_on_which_items_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, batch = tables(), users(3000, seed=4)
    raw = torch.stack([part.score(batch.query).scores[:, 0] for part in methods.values()])
    chance = (raw[0] + 0.5 * raw[2]).scatter(1, batch.query.history, -1e9)
    chance[:, 0] = -1e9
    drawn = torch.multinomial(chance.softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    query = replace(batch.query, target=drawn)
    weights = []
    for candidates in (100, 20):
        monkeypatch.setattr("metarec.recipes.candidates.CANDIDATES", candidates)
        found = ContextWeights(list(methods), context=False)
        found.fit(candidate_scores(methods, WARM, [EpisodeBatch(batch.user, query, query)]))
        weights.append(found.weight.detach())
    assert weights[0][0, 0] > 1
    torch.testing.assert_close(weights[1], weights[0], atol=0.1, rtol=0)


def test_the_context_counts_what_each_query_may_read() -> None:
    """Of a user without clicks nothing counts, and a gap below 0 is none."""
    batch, one = users(40, seed=1), torch.ones(1, 1, dtype=torch.int64)
    found = user_context(batch.query, WARM)
    for row, history in enumerate(batch.query.history.tolist()):
        read = [item for item in history if item]
        cold = sum(not bool(WARM[item]) for item in read) / len(read)
        gap = np.log1p(float(batch.query.gap[row, 0]))  # type: ignore[index]
        assert found[row, 0].tolist() == pytest.approx([len(read), cold, gap])
    for gap, expected in ((None, np.nan), (torch.zeros(1, 1), 0.0), (torch.full((1, 1), -5.0), 0.0)):
        nobody = Examples(one * 0, one * 0, one, one.unsqueeze(2), torch.ones(1, 1), gap=gap)
        assert user_context(nobody, WARM)[0, 0].tolist() == pytest.approx([1.0, 0.0, expected], nan_ok=True)


def test_features_are_those_of_a_formula() -> None:
    """The log of the gap is standardised and clipped to three deviations; what is not known is as usual."""
    weights = random_weights()
    mean, deviation = weights.usual.tolist()
    for clicks, cold, gap in ((1.0, 0.0, mean), (7.0, 0.25, mean + deviation), (20.0, 1.0, 99.0), (3.0, 0.5, -99.0)):
        z = min(3.0, max(-3.0, (gap - mean) / deviation))
        expected = [1.0, np.log(clicks) - 1.5, cold, z, z * z - 1]
        assert weights.features(torch.tensor([clicks, cold, gap])).tolist() == pytest.approx(expected, abs=1e-6)
    unknown = weights.features(torch.tensor([3.0, 0.5, torch.nan])).tolist()
    assert unknown == pytest.approx([1.0, np.log(3) - 1.5, 0.5, 0.0, 0.0])


def test_weights_of_a_user_are_those_in_any_batch() -> None:
    weights = random_weights()
    context = torch.rand(257, 3, generator=torch.Generator().manual_seed(0)) * 20 + 1
    context[::5, 2] = torch.nan
    whole = weights(context)
    for rows in (slice(0, 1), slice(3, 20), slice(250, 257)):
        alone = weights(context[rows])
        assert all(
            one.dtype == torch.float64 and torch.equal(one, all_[rows]) for one, all_ in zip(alone, whole, strict=True)
        )


def test_what_cannot_be_fitted_is_named() -> None:
    seen = candidate_scores(tables(), WARM, [users(3)], exclude_seen=False)
    with pytest.raises(ValueError, match=r"\['d'\].*\['a', 'b', 'c'\]"):
        ContextWeights(["a", "d"]).fit(seen)
    with pytest.raises(ValueError, match=r"ContextWeights\.fit"):
        ContextWeights(["a"]).fit(seen.on(torch.zeros(3) > 0))
    with pytest.raises(ValueError, match="ContextWeights: "):
        ContextWeights([])
    with pytest.raises(ValueError, match="candidate scores: "):
        candidate_scores(tables(), WARM, [])
