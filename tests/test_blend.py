"""The blend against loops, a fusion whose weights are known, and a rehearsal written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarec.data import split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import EASE, Blend, LivePopularity, Popularity, sasrec
from metarec.recipes.blend import observe
from metarec.recipes.rehearsal import last_clicks, rehearsal_split, rehearsed
from metarec.types import EpisodeBatch, Examples, Scored, Scorer

ITEMS = 30
WARM = torch.arange(ITEMS + 1) < 25
WARM[0] = False


class Table:
    """Scores by the last item read, over the items it knows."""

    def __init__(self, seed: int, known: Tensor, **declared: object) -> None:
        self.table = torch.randn(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(seed)) * 3
        self.known = known
        for name, value in declared.items():
            setattr(self, name, value)

    def adapt(self, support: Examples) -> Scorer:
        return self.score

    def score(self, examples: Examples) -> Scored:
        scores = self.table[examples.history.gather(1, examples.position)]
        return Scored(scores, scores[..., :1], self.known, torch.ones(examples.target.shape) > 0)


def users(count: int, seed: int = 0) -> EpisodeBatch:
    """Queries of users with 1 to 8 clicks each."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.randint(1, 9, (count, 1), generator=generator)
    history = torch.randint(1, ITEMS + 1, (count, 8), generator=generator) * (torch.arange(8) < n)
    gap = torch.randint(1, 100_000, (count, 1), generator=generator).double()
    negatives = torch.zeros(count, 1, 0, dtype=torch.int64)
    query = Examples(history, n - 1, torch.ones_like(n), negatives, torch.ones(count, 1), gap=gap)
    return EpisodeBatch(torch.arange(count), query, query)


def blend(*, context: bool = True) -> Blend:
    every = torch.arange(ITEMS + 1) > 0
    out = Blend({"a": Table(0, every), "b": Table(1, WARM), "c": Table(2, every)}, WARM, context=context)
    with torch.no_grad():
        for parameter in (out.weight, out.unknown):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        out.usual.copy_(torch.tensor([10.5, 1.1]))
    return out


@pytest.mark.parametrize("context", [True, False])
def test_fused_scores_are_those_of_a_loop_over_users_and_items(context: bool) -> None:
    method, batch = blend(context=context), users(12)
    with torch.no_grad():
        found = method.adapt(batch.support)(batch.query)
    for row in range(12):
        clicks = [i for i in batch.query.history[row].tolist() if i]
        z = min(3.0, max(-3.0, (math.log(1 + float(batch.query.gap[row, 0])) - 10.5) / 1.1))  # type: ignore[index]
        cold = sum(i >= 25 for i in clicks) / len(clicks)
        features = [1.0, math.log(len(clicks)) - 1.5, cold, z, z**2 - 1][: 5 if context else 1]
        expected = np.zeros(ITEMS + 1)
        for s, part in enumerate(method.methods.values()):
            weight = sum(f * w for f, w in zip(features, method.weight[:, s].tolist(), strict=False))
            missing = sum(f * w for f, w in zip(features, method.unknown[:, s].tolist(), strict=False))
            raw, known = part.table[clicks[-1]].numpy(), part.known.numpy()  # type: ignore[attr-defined]
            z = (raw - raw[known].mean()) / raw[known].std()
            expected += np.where(known, weight * z, missing)
        np.testing.assert_allclose(found.scores[row, 0].numpy(), expected, atol=1e-4)
    assert found.known.tolist() == [False] + [True] * ITEMS


def test_fitting_finds_the_weights_that_made_the_clicks() -> None:
    truth, batch = blend(), users(6000, seed=3)
    gap = batch.query.gap.log1p()  # type: ignore[union-attr]
    truth.usual.copy_(torch.stack([gap.mean(), gap.std()]))
    with torch.no_grad():
        scores = truth.adapt(batch.support)(batch.query).scores[:, 0]
    seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, batch.query.history, value=True)
    seen[:, 0] = True
    drawn = torch.multinomial(scores.masked_fill(seen, -1e9).softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    query = replace(batch.query, target=drawn)
    found = blend()
    with torch.no_grad():
        found.weight.zero_(), found.unknown.zero_()
    found.fit(
        observe(found.methods, WARM, [EpisodeBatch(batch.user, query, query)]), penalty=1e-6, top=0, iterations=100
    )
    torch.testing.assert_close(found.usual, truth.usual)
    torch.testing.assert_close(found.weight, truth.weight, atol=0.2, rtol=0)
    torch.testing.assert_close(found.unknown[:, 1], truth.unknown[:, 1], atol=0.3, rtol=0)
    assert not found.unknown[:, [0, 2]].abs().gt(1e-3).any()  # nobody lacks an item there: the penalty keeps them at 0


def test_clicks_that_nobody_can_foresee_do_not_turn_the_weights() -> None:
    """Half of the clicks follow a method, half are drawn against it: the top of the list is still the method's."""
    batch = users(600, seed=5)
    table = Table(0, torch.arange(ITEMS + 1) > 0)
    scores = table.score(batch.query).scores[:, 0].clone()
    scores.scatter_(1, batch.query.history, -1e9)[:, 0] = -1e9
    order = scores.argsort(-1, descending=True)
    place = torch.where(torch.arange(600) % 2 == 0, 0, 20)  # the first of the list, or one far down
    query = replace(batch.query, target=order.gather(1, place[:, None]))
    seen = observe({"a": table}, WARM, [EpisodeBatch(batch.user, query, query)])
    weights = {}
    for top in (0.0, 0.4):
        found = Blend({"a": table}, WARM, context=False)
        found.fit(seen, penalty=1e-6, top=top)
        weights[top] = found.weight[0, 0].item()
        tried = [_lost(w * seen.z[:, 0], seen.stands_for < 0, query.target, top) for w in np.linspace(0, 8, 81)]
        assert _lost(weights[top] * seen.z[:, 0], seen.stands_for < 0, query.target, top) <= min(tried) + 1e-4
    assert weights[0.4] > 2 * weights[0.0] > 0


def _lost(scores: Tensor, excluded: Tensor, target: Tensor, top: float) -> float:
    chance = scores.masked_fill(excluded, -1e9).softmax(-1).gather(1, target)
    return float((-chance.log() if top == 0 else (1 - chance**top) / top).mean())


def test_a_blend_knows_what_its_richest_method_knows() -> None:
    up, _ = split_by_time(planted(users=60, items=30), at=PLANTED_SPLIT)
    calm, live = Popularity(up), LivePopularity(planted(users=60, items=30), window=100)
    warm = torch.from_numpy(up.warm)
    assert Blend({"a": calm}, warm).information == "upstream"
    assert Blend({"a": calm, "b": live}, warm).information == "live"
    late = Table(0, WARM, information="later", fitted_until=5e6)
    assert Blend({"a": calm, "b": live, "c": late}, warm).information == "later"
    assert Blend({"a": calm, "c": late}, warm).fitted_until == 5e6
    assert Blend({"b": live}, warm).fitted_until is None
    inner = Blend({"a": calm, "c": late}, warm)
    assert Blend({"inner": inner}, warm).information == "later"


def test_modules_are_parts_and_weights_go_from_one_blend_to_another() -> None:
    up, _ = split_by_time(planted(users=60, items=ITEMS), at=PLANTED_SPLIT)
    learner = sasrec.build(up, dim=4)
    whole = Blend({"id": learner, "ease": EASE(up)}, torch.from_numpy(up.warm))
    assert {id(p) for p in learner.parameters()} < {id(p) for p in whole.parameters()}
    first, second = blend(), blend(context=True)
    with torch.no_grad():
        first.weight.add_(1)
    second.take_weights(first)
    assert torch.equal(second.weight, first.weight) and second.weight is not first.weight
    with pytest.raises(ValueError, match=r"expected the methods \['id', 'ease'\], got \['a', 'b', 'c'\]"):
        whole.take_weights(first)
    with pytest.raises(ValueError, match="at least one method"):
        Blend({}, WARM)
    with pytest.raises(ValueError, match="expected users with queries to observe, got none"):
        observe(first.methods, WARM, [])
    with pytest.raises(ValueError, match=r"nothing was observed of \['id', 'ease'\], only of \['a', 'b', 'c'\]"):
        whole.fit(observe(first.methods, WARM, [users(3)]))
    with pytest.raises(ValueError, match="expected clicks to fit to, got none"):
        first.fit(observe(first.methods, WARM, [users(3)], exclude_seen=False).on(torch.zeros(3) > 0))


def test_a_rehearsal_is_a_fit_on_the_later_upstream_users_and_reads_nothing_else() -> None:
    up, down = split_by_time(planted(users=120, items=40, adaptation=0.0), at=PLANTED_SPLIT)
    asked = []

    def make(data: object) -> dict[str, object]:
        asked.append(data)
        return {"popularity": Popularity(data), "ease": EASE(data, penalty=5.0)}  # type: ignore[arg-type]

    found = rehearsed(up, make, clicks=2)  # type: ignore[arg-type]
    earlier, later = split_by_time(up, at=split_time(up, cold_users=0.2))
    by_hand = Blend(make(earlier), torch.from_numpy(earlier.warm))  # type: ignore[arg-type]
    assert up.repeat_share > 0.1  # so what was clicked before is a rival, and may be the answer
    by_hand.fit(observe(by_hand.methods, by_hand.warm, list(last_clicks(later, 2)), exclude_seen=False))
    assert torch.equal(found.weight, by_hand.weight)
    assert [len(data) for data in asked] == [len(earlier), len(up), len(earlier)]  # type: ignore[arg-type]
    assert found.methods["ease"].fitted_until == up.time.max() < down.time.min()  # type: ignore[attr-defined]
    better = evaluate(found, down, k=(4,)).metrics["ndcg@4"].mean
    assert better > evaluate(Popularity(up), down, k=(4,)).metrics["ndcg@4"].mean


def test_of_many_later_users_some_are_drawn() -> None:
    up, _ = split_by_time(planted(users=300, items=40), at=PLANTED_SPLIT)
    earlier, later = rehearsal_split(up)
    some = rehearsal_split(up, most=10)
    assert len(later.user_codes) > 10 == len(some[1].user_codes) and len(some[0]) == len(earlier)
    for user in some[1].user_codes:  # with all of their clicks
        assert some[1].item[some[1].user == user].tolist() == later.item[later.user == user].tolist()
    spread = np.searchsorted(later.user_codes, some[1].user_codes)
    assert spread.max() > len(later.user_codes) / 2 > spread.min()


def test_last_clicks_are_asked_for_one_after_the_other() -> None:
    data = planted(users=40, items=30)
    found = set()
    for batch in last_clicks(data, 3, users_per_batch=7):
        for row, user in enumerate(batch.user.tolist()):
            known = batch.query.history[row, : int(batch.query.position[row, 0]) + 1].tolist()
            found.add((user, tuple(known), int(batch.query.target[row, 0])))
    expected = set()
    for user in data.user_codes.tolist():
        own = data.item[data.user == user].tolist()
        expected |= {(user, tuple(own[:at]), own[at]) for at in range(len(own) - 3, len(own)) if at >= 3}
    assert found == expected


def test_methods_of_a_blend_may_hold_parameters_that_are_not_fitted() -> None:
    learner = nn.Linear(1, 1)
    method = blend()
    method.parts.append(learner)
    before = learner.weight.clone()
    batch = users(50)
    method.fit(observe(method.methods, WARM, [batch]), iterations=3)
    assert torch.equal(learner.weight, before)


def test_what_is_observed_is_what_the_methods_say() -> None:
    methods, batch = blend().methods, users(9)
    query = batch.query
    found = observe(methods, WARM, batch.chunks(4))
    asked = [row for row in range(9) if 1 not in query.history[row]]  # no list without seen items shows the others
    whole = observe(methods, WARM, batch.chunks(4), exclude_seen=False)
    assert whole.user.tolist() == list(range(9)) != asked and bool((whole.stands_for[:, 1:] == 0).all())
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
        assert set(found.stands_for[row].nonzero().squeeze(1).tolist()) == expected
        assert found.stands_for[row].exp().sum() == ITEMS + 1 - len(expected)
    half = whole.on(torch.arange(9) < 4).of(["c", "a"])
    assert torch.equal(half.z, whole.z[:4, [2, 0]]) and half.names == ("c", "a")
    assert torch.equal(half.unknown, whole.unknown[:4, [2, 0]])


def test_of_a_large_catalogue_the_best_are_rivals_and_some_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, batch = blend().methods, users(40)
    every = observe(methods, WARM, [batch])
    monkeypatch.setattr("metarec.recipes.blend.RIVALS", 16)  # the two best of each of three methods, and the target
    some = observe(methods, WARM, batch.chunks(7))
    assert some.z.shape == (len(every.z), 3, 16) and torch.equal(some.context, every.context)
    for row in range(len(every.z)):
        rivals = [code for column in some.z[row].T for code in _same(column, every.z[row].T)]
        assert len(set(rivals)) == 16, "each is an item of its own"
        allowed = every.stands_for[row] == 0
        best = every.z[row].masked_fill(~allowed, -torch.inf).topk(2).indices.flatten().tolist()
        alone = {code for code, log in zip(rivals, some.stands_for[row].tolist(), strict=True) if log == 0}
        assert alone == {*best, int(every.target[row])}
        assert rivals[int(some.target[row])] == int(every.target[row])
        torch.testing.assert_close(some.stands_for[row].exp().sum(), allowed.sum().float())
        torch.testing.assert_close(some.unknown[row], every.unknown[row][:, rivals])


def _same(column: Tensor, columns: Tensor) -> list[int]:
    return (columns == column).all(1).nonzero().squeeze(1).tolist()


def test_weights_hardly_depend_on_which_rivals_stand_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, batch = blend(context=False).methods, users(3000, seed=4)
    tables = torch.stack([part.score(batch.query).scores[:, 0] for part in methods.values()])  # type: ignore[attr-defined]
    chance = (tables[0] + 0.5 * tables[2]).scatter(1, batch.query.history, -1e9)
    chance[:, 0] = -1e9
    drawn = torch.multinomial(chance.softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    query = replace(batch.query, target=drawn)
    weights = []
    for rivals in (100, 20):
        monkeypatch.setattr("metarec.recipes.blend.RIVALS", rivals)
        found = blend(context=False)
        found.fit(observe(methods, WARM, [EpisodeBatch(batch.user, query, query)]))
        weights.append(found.weight.detach())
    assert weights[0][0, 0] > 1
    torch.testing.assert_close(weights[1], weights[0], atol=0.1, rtol=0)
