"""The cold-user protocol against a loop over users written from its definition."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from evaluation_worlds import ITEMS, USERS, Neighbours, clicks_of, make_data, scored
from metarec.data.sampler import EpisodeSampler
from metarec.data.split import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import choose_steps, evaluate
from metarec.meta import MetaLearner
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes.popularity import Popularity
from metarec.report import Report, results_table
from metarec.types import Examples, Method, Scored, Scorer


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("repeated", ["leave_out", "miss"])
@pytest.mark.parametrize("users_per_batch", [1, 8, 512])
def test_ranks_are_those_of_a_loop_over_users(
    part: Literal["test", "validation"],
    exclude_seen: bool,
    repeated: Literal["leave_out", "miss"],
    users_per_batch: int,
) -> None:
    data, method, expected, repeats = make_data(), Neighbours(), {}, set()
    for user, clicks in clicks_of(data):
        if len(clicks) < 4:
            continue
        *history, target = clicks if part == "test" else clicks[:-1]
        scores = method.table[history[-1]].clone()
        for item in clicks[1:-2]:
            scores[item] += 100
        rivals = set(range(1, ITEMS + 1)) - {target} - (set(history) if exclude_seen else set())
        better = sum(float(scores[i] > scores[target]) + 0.5 * float(scores[i] == scores[target]) for i in rivals)
        expected[user] = (target, math.inf if exclude_seen and target in history else 1 + better)
        repeats |= {user} if target in history else set()
    assert repeats
    if exclude_seen and repeated == "leave_out":
        expected = {user: row for user, row in expected.items() if user not in repeats}
    report = evaluate(
        method, data, part=part, exclude_seen=exclude_seen, repeated=repeated, users_per_batch=users_per_batch
    )
    assert report.info["repeated_targets"] == len(repeats)
    assert [user in repeats for user in report.user.tolist()] == report.rows["repeated"].tolist()
    assert report.user.tolist() == sorted(expected)
    found = dict(zip(report.user.tolist(), zip(report.target.tolist(), report.rank.tolist(), strict=True), strict=True))
    assert found == expected
    assert report.is_cold.tolist() == [expected[user][0] >= 18 for user in sorted(expected)]
    assert 0 < report.cold_users < len(report) < USERS


def test_popularity_counts_clicks_and_ranks_by_them() -> None:
    up, down = make_data(0), make_data(5)
    down = replace(down, time=down.time + len(up))
    for since in (None, 60):
        counted = [item for item, time in zip(up.item.tolist(), up.time, strict=True) if since is None or time >= since]
        counts = [counted.count(item) for item in range(ITEMS + 1)]
        assert Popularity(up, since=since).counts.tolist() == counts
        report = evaluate(Popularity(up, since=since), down)
        for target, rank in zip(report.target.tolist(), report.rank.tolist(), strict=True):
            key = [count if warm else -1 for count, warm in zip(counts, up.warm, strict=True)]  # cold items come last
            rivals = [key[item] for item in range(1, ITEMS + 1) if item != target]
            assert rank == 1 + sum(c > key[target] for c in rivals) + rivals.count(key[target]) / 2
    assert isinstance(Popularity(up), Method)
    with pytest.raises(ValueError, match="since=1000"):
        Popularity(up, since=1000)


class Negative:
    """Scores below zero for the two items it knows, and zero, which means nothing, for the others."""

    def adapt(self, support: Examples) -> Scorer:
        def score(examples: Examples) -> Scored:
            scores = torch.zeros(*examples.target.shape, ITEMS + 1)
            scores[..., 1], scores[..., 2] = -1.0, -2.0
            known = torch.zeros(ITEMS + 1, dtype=torch.bool)
            known[1:3] = True
            return Scored(scores, scores[..., :1], known, torch.ones(examples.target.shape, dtype=torch.bool))

        return score


def test_items_that_a_method_does_not_know_come_last() -> None:
    report = evaluate(Negative(), make_data(5))
    rank = {1: 1.0, 2: 2.0}
    assert {1, 2} & set(report.target.tolist())
    assert report.rank.tolist() == [rank.get(item, 2 + (ITEMS - 2 + 1) / 2) for item in report.target.tolist()]


def test_means_and_standard_errors_are_those_of_numpy() -> None:
    rank = np.array([1.0, 2.5, 5.0, 5.5, 30.0, 12.0])
    cold = np.array([True, False, True, False, False, True])
    report = Report(np.arange(6), np.arange(6), rank, cold, k=(5, 20))
    for metrics, keep in ((report.metrics, cold | ~cold), (report.cold, cold), (report.on(rank > 4), rank > 4)):
        assert list(metrics) == ["recall@5", "recall@20", "mrr@5", "mrr@20", "ndcg@5", "ndcg@20"]
        for k in (5, 20):
            hit = rank[keep] <= k
            worth = {"recall": hit * 1.0, "mrr": hit / rank[keep], "ndcg": hit / np.log2(1 + rank[keep])}
            for name, values in worth.items():
                error = np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1) / len(values))
                found = metrics[f"{name}@{k}"]
                assert (found.mean, found.se) == pytest.approx((values.mean(), error), rel=1e-12)


def test_a_slice_without_users_has_no_numbers() -> None:
    none = np.zeros(2, dtype=bool)
    report = Report(np.arange(2), np.arange(2), np.array([1.0, 2.0]), none, k=(1,))
    assert math.isnan(report.cold["mrr@1"].mean)
    assert report.cold["mrr@1"].to_dict() == {"mean": None, "se": None}
    assert "cold" not in str(report)
    assert str(report.cold["mrr@1"]) == "-"
    with pytest.raises(ValueError, match=r"one value.* \[2, 2, 2, 1, 2\]"):
        Report(none, none, none, none[:1])


def test_a_diverged_method_is_named() -> None:
    class Diverged:
        def adapt(self, support: Examples) -> Scorer:
            return lambda examples: scored(torch.full((*examples.target.shape, ITEMS + 1), float("nan")))

    with pytest.raises(ValueError, match=r"Diverged on made up \(test, user 'u11'\): .*score.* \(0, 0, 1\)"):
        evaluate(Diverged(), make_data())


def test_scores_that_do_not_cover_the_catalogue_are_refused() -> None:
    class Narrow:
        def adapt(self, support: Examples) -> Scorer:
            return lambda examples: scored(torch.zeros(*examples.target.shape, ITEMS))

    with pytest.raises(ValueError, match=r"Narrow on made up \(test, user 'u11'\): expected scores \(1, 1, 24\), got"):
        evaluate(Narrow(), make_data())


def test_a_module_is_evaluated_in_evaluation_mode_and_left_as_it_was() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.seen = nn.Linear(1, 1).eval(), set[bool]()

        def adapt(self, support: Examples) -> Scorer:
            self.seen.add(self.training or self.frozen.training)
            assert not torch.is_grad_enabled()  # as serving does; a method that needs gradients enables them
            return lambda examples: scored(torch.zeros(*examples.target.shape, ITEMS + 1))

    module = Module()
    report = evaluate(module, make_data())
    assert module.seen == {False}
    assert module.training and not module.frozen.training
    assert set(report.rank.tolist()) == {(ITEMS + 1) / 2}


def test_a_report_says_what_it_is_and_writes_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    report = evaluate(Neighbours(), data, k=(2, 7), exclude_seen=True, seed=3, progress=True)
    assert "evaluate Neighbours" in capsys.readouterr().err
    report.to_json(tmp_path / "deep" / "report.json")
    read = json.loads((tmp_path / "deep" / "report.json").read_text())
    too_few = sum(len(clicks) < 4 for _, clicks in clicks_of(data))
    assert read["info"].pop("refused") == {"users with fewer than 4 clicks": too_few}
    assert "left out" in read["info"].pop("rule")
    assert read["info"] == {
        "method": "Neighbours",
        "data": "made up",
        "part": "test",
        "exclude_seen": True,
        "seed": 3,
        "max_length": 50,
        "negatives": 1,
        "repeated": "leave_out",
        "repeated_targets": 5,
        "information": "later",
        "said": False,
        "fitted_until": None,
        "trained": [],
        "untrained": [],
        "positions": 1,
    }
    assert read["per_user"]["rank"] == report.rank.tolist()
    assert read["users"] == USERS - too_few - 5
    assert read["metrics"]["mrr@7"]["mean"] == report.metrics["mrr@7"].mean
    lines = str(report).splitlines()
    assert lines[0] == f"Neighbours on made up (test): {len(report)} users, information: later"
    assert lines[2].split() == ["recall", str(report.metrics["recall@2"]), str(report.metrics["recall@7"])]


def test_a_table_of_methods() -> None:
    rank = np.array([1.0, 2.0, 4.0, 100.0])
    users, cold = np.arange(1, 5), np.array([False, False, True, True])
    first, second = (Report(users, users, r, cold, k=(3,)) for r in (rank, np.ones(4)))
    assert results_table({"first": first, "second": second}).splitlines() == [
        "method (upstream)  users  recall@3    mrr@3       ndcg@3",
        "first              4      .500±.289   .375±.239   .408±.247",
        "second             4      1.000±.000  1.000±.000  1.000±.000",
    ]
    assert results_table({"first": first}, cold=True).splitlines()[1].split() == ["first", "2", *[".000±.000"] * 3]
    other = Report(users, users, rank, cold, k=(5,))
    with pytest.raises(ValueError, match="reports with one k"):
        results_table({"first": first, "other": other})
    with pytest.raises(ValueError, match="reports with one k"):
        results_table({})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_chosen_steps_are_those_of_a_loop_over_users_and_steps(seed: int) -> None:
    up, down = split_by_time(planted(users=60, items=20, seed=seed), at=PLANTED_SPLIT)
    torch.manual_seed(seed)
    learner = ModalityLearner(IdItems(up.catalog.size, 8), SequenceEncoder(8, dropout=0.0)).eval()
    meta = MetaLearner(learner, lr=0.3, steps=7, adapts="all", engine="native")
    candidates = (4, 1, 0, 9, 2)
    values = dict.fromkeys(candidates, 0.0)
    everyone = next(EpisodeSampler(down, part="validation", users_per_batch=512).epoch(0))
    for user in everyone.chunks(1):
        for steps in candidates:
            own = copy.deepcopy(learner)
            for _ in range(steps):
                own.zero_grad()
                own.loss(user.support, "bpr").sum().backward()
                with torch.no_grad():
                    for parameter in own.parameters():
                        parameter -= 0.3 * (0 if parameter.grad is None else parameter.grad)
            scores = own(user.query).scores[0, 0, 1:]
            rank = 1 + int((scores > scores[user.query.target[0, 0] - 1]).sum())
            values[steps] += 1 / rank if rank <= 10 else 0
    assert len(set(values.values())) > 2
    best = max(values.values())
    chosen = choose_steps(meta, down, candidates)
    assert chosen == min(steps for steps, value in values.items() if value > best - 1e-9)
    assert meta.steps == 7


def test_equally_good_steps_go_to_the_fewest_and_some_must_be_given() -> None:
    up, down = split_by_time(planted(users=60, items=20), at=PLANTED_SPLIT)
    learner = ModalityLearner(IdItems(up.catalog.size, 8), SequenceEncoder(8))
    still = MetaLearner(learner, lr=0.0, engine="native")
    assert choose_steps(still, down, (50, 3, 5)) == 3
    with pytest.raises(ValueError, match="steps"):
        choose_steps(still, down, ())
