"""One rule on items that a user has clicked, whoever asks; what is ranked is what a Recommender would show."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarec import Recommender, Report, as_model, evaluate
from metarec.comparison import compare
from metarec.data import Catalog, Dataset, EpisodeSampler, Vocabulary, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import choose_steps
from metarec.functional.histories import leaves_out_seen
from metarec.meta import MetaLearner
from metarec.recipes import EASE, MML, Ensemble, MMLConfig, Popularity, nested_validation, sasrec, select_inner_steps
from metarec.report import results_table
from metarec.reporting import load_results, plot_results, write_results
from metarec.types import Examples, Scored, Scorer

UP, DOWN = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)


def shop(clicks: list[list[int]], *, items: int = 40) -> Dataset:
    """One list of item codes per user; the users follow each other in time."""
    user = np.repeat(np.arange(1, len(clicks) + 1), [len(own) for own in clicks])
    item = np.concatenate([np.array(own) for own in clicks])
    warm = np.arange(items + 1) > 0
    people = Vocabulary([f"u{n}" for n in range(len(clicks))], "user")
    return Dataset(people, Catalog(Vocabulary([f"i{n}" for n in range(items)])), user, item, np.arange(len(user)), warm)


class ByCode:
    """Scores by item code; knows nothing of anybody."""

    information = "upstream"

    def __init__(self, items: int = 40) -> None:
        self.items, self.lengths = items, set[int]()

    def adapt(self, support: Examples) -> Scorer:
        def score(examples: Examples) -> Scored:
            self.lengths |= {examples.history.shape[-1]}
            shape = examples.target.shape
            scores = torch.arange(self.items + 1.0).expand(*shape, -1)
            return Scored(scores, torch.zeros(*shape, 1), torch.arange(self.items + 1) > 0, torch.ones(shape) > 0)

        return score


def test_a_few_doubled_rows_do_not_turn_the_rule() -> None:
    rng = np.random.default_rng(0)
    once = [rng.permutation(300)[:100] + 1 for _ in range(100)]
    few = [np.append(own, own[:1]) if n < 3 else own for n, own in enumerate(once)]  # 3 repeats among 10,000 clicks
    often = [np.append(own, own[:5]) for own in once]
    for clicks, left_out in ((once, True), (few, True), (often, False)):
        data = shop([own.tolist() for own in clicks], items=300)
        up, down = split_by_time(data, at=int(data.time[-1]) // 2)
        assert leaves_out_seen(up.repeat_share) is leaves_out_seen(down.known_repeat_share) is left_out
        report = evaluate(ByCode(300), down)
        assert report.info["exclude_seen"] is left_out
        assert f"{up.repeat_share:.1%} of the clicks" in str(report) and "2%" in str(report)
        model = MML.build(up, MMLConfig(dim=8, layers=1))
        assert model.repeat_share == up.repeat_share
        for served in (model, as_model(Popularity(up), up)):
            clicked = up.catalog.items.ids[:3]
            listed = {item.id for item in Recommender(served).adapt(clicked).recommend(k=200)}
            assert (len(listed & set(clicked)) == 0) is left_out


def test_the_number_is_that_of_the_upstream_side_and_of_the_model_first() -> None:
    data = shop([[1, 2, 3, 4]] * 3 + [[5, 6, 7, 5, 8]] * 2)
    up, down = split_by_time(data, at=11)
    assert (up.known_repeat_share, down.known_repeat_share, down.repeat_share) == (0.0, 0.0, 0.2)
    assert evaluate(ByCode(), down).info["exclude_seen"] is True
    assert evaluate(ByCode(), replace(down, upstream_repeat_share=None)).info["exclude_seen"] is False
    trained_elsewhere = ByCode()
    trained_elsewhere.repeat_share = 0.5
    assert evaluate(trained_elsewhere, down).info["exclude_seen"] is False
    assert "kept in" in str(evaluate(ByCode(), down, exclude_seen=False).info["rule"])
    earlier, later = split_by_time(replace(data, upstream_repeat_share=0.4), at=11)
    assert earlier.known_repeat_share == later.known_repeat_share == 0.4, "a side of a side"


def test_ranks_are_the_places_in_the_recommenders_lists() -> None:
    """Whatever the model reads, a list leaves out all that was clicked."""
    rng = np.random.default_rng(1)
    clicks = [rng.integers(1, 41, 12).tolist() for _ in range(30)]
    data = shop(clicks)
    up, down = split_by_time(data, at=int(data.time[len(data) // 2]))
    learner = sasrec.build(up, dim=8, layers=1, max_length=5)
    for _ in sasrec.train(learner, up, epochs=1):
        pass
    for method in (learner, EASE(up)):
        whole = evaluate(method, down, part="serving", exclude_seen=True)
        assert whole.info["max_length"] == (5 if method is learner else 50)
        asked = dict(zip(whole.user.tolist(), whole.rank.tolist(), strict=True))
        recommender, found = Recommender(as_model(method, up)), {}
        for code in down.user_codes.tolist():
            *history, target = down.catalog.items.decode(down.item[down.user == code])
            left = 40 - len(set(history))
            listed = [item.id for item in recommender.adapt(history).recommend(k=left, exclude_seen=True)]
            if target in listed:
                found[code] = listed.index(target) + 1
        assert set(asked) == set(found) and len(found) < len(down.user_codes)
        untied = {code for code, rank in asked.items() if rank == int(rank)}
        assert {c: asked[c] for c in untied} == {c: found[c] for c in untied}
    cut = evaluate(ByCode(), down, part="serving", exclude_seen=True, max_length=4)  # as if they had clicked no more
    repeats = sum(target in history[-4:] for *history, target in (down.item[down.user == c] for c in down.user_codes))
    assert cut.info["repeated_targets"] == repeats


def test_histories_are_as_long_as_the_method_reads() -> None:
    data = shop([list(range(1, 41)) * 2] * 4)
    up, down = split_by_time(data, at=160)
    short, long = (sasrec.build(up, dim=8, layers=1, max_length=n) for n in (7, 60))
    ways: list[tuple[Any, int]] = [(short, 7), (long, 60), (MetaLearner(short, steps=1, engine="native"), 7)]
    ways += [(MML.build(up, MMLConfig(dim=8, layers=1, max_length=9)), 9), (ByCode(), 50)]
    ways += [(Ensemble({"a": ByCode(), "b": long}, up), 60), (as_model(long, up), 60)]
    for method, length in ways:
        assert evaluate(method, down, exclude_seen=False).info["max_length"] == length
    watched = ByCode()
    evaluate(watched, down, exclude_seen=False)
    watched.max_length = 12
    evaluate(watched, down, exclude_seen=False)
    assert watched.lengths == {50, 12}


def test_what_no_list_can_show_is_no_hit() -> None:
    """Items in the history first: with seen items left out that was a hit each time."""
    down = replace(shop([[5, 6, 7, 8, 9, n % 4 + 5] for n in range(8)] + [[1, 2, 3, 4, 40]]), upstream_repeat_share=0.0)
    left, missed = (evaluate(ByCode(), down, k=(1, 99), repeated=how) for how in ("leave_out", "miss"))
    assert (len(left), left.metrics["recall@1"].mean, left.info["repeated_targets"]) == (1, 1.0, 8)
    assert "8 targets" in str(left)
    assert (len(missed), missed.metrics["recall@1"].mean) == (9, pytest.approx(1 / 9))
    for metric in ("recall@99", "mrr@99", "ndcg@99"):
        assert missed.slices["repeated"][metric].mean == 0.0 < missed.slices["new"][metric].mean
    assert "8 targets" in str(missed)
    kept = evaluate(ByCode(), down, k=(1,), exclude_seen=False)
    assert kept.rows["repeated"].tolist() == [True] * 8 + [False] and "repeated items: 8 users" in str(kept)
    with pytest.warns(UserWarning, match=r"all 8 .*clicked .* exclude_seen=False"):
        nothing = evaluate(ByCode(), replace(shop([[5, 6, 7, 8, 9, 5]] * 8), upstream_repeat_share=0.0))
    assert len(nothing) == 0 and math.isnan(nothing.metrics["recall@10"].mean)


def test_each_position_has_its_own_repeats() -> None:
    data = replace(DOWN, upstream_repeat_share=0.0)
    for how in ("leave_out", "miss"):
        expected = []
        for code in data.user_codes.tolist():
            own = data.item[data.user == code].tolist()
            for last in range(len(own), max(3, len(own) - 3), -1):
                *history, target = own[:last]
                better = sum(item > target for item in set(range(1, 41)) - set(history))
                if target not in history:
                    expected.append((code, target, 1 + better))
                elif how == "miss":
                    expected.append((code, target, math.inf))
        found = evaluate(ByCode(), data, positions=3, repeated=how)
        assert list(zip(found.user.tolist(), found.target.tolist(), found.rank.tolist(), strict=True)) == expected


def test_steps_are_not_chosen_by_clicks_that_no_list_shows() -> None:
    down = replace(shop([[5, 6, 7, 5, 9, 8]] * 8), upstream_repeat_share=0.0)
    meta = MetaLearner(sasrec.build(replace(UP, upstream_repeat_share=0.0), dim=8), engine="native")
    with pytest.warns(UserWarning, match="nothing to ask for"), pytest.raises(ValueError, match="all are repeats"):
        choose_steps(meta, replace(down, item=np.where(down.item == 9, 5, down.item)))
    model = MML.build(down, MMLConfig(dim=8, layers=1, modalities=()))
    repeats = replace(down, item=np.tile([5, 6, 7, 5, 6, 7], 8))
    with pytest.raises(ValueError, match="at least two users"):
        select_inner_steps(model, repeats, clicks=1)
    assert select_inner_steps(model, replace(repeats, upstream_repeat_share=0.5), clicks=1) == {"id": 0}


def test_nested_validation_follows_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    said, real = [], nested_validation.candidate_scores

    def watched(*args: Any, exclude_seen: bool, **how: Any) -> Any:
        said.append(exclude_seen)
        return real(*args, exclude_seen=exclude_seen, **how)

    monkeypatch.setattr(nested_validation, "candidate_scores", watched)
    for share in (0.0, 0.3):
        up = replace(UP, upstream_repeat_share=share)
        nested_validation.fit_by_nested_validation(up, lambda data: {"popularity": Popularity(data)}, clicks=1)
    assert said == [True, False]


def test_slices_are_in_tables_and_files(tmp_path: Path) -> None:
    report = evaluate(EASE(UP), DOWN, k=(5,), repeated="miss", exclude_seen=True)
    whole = replace(report, rank=np.where(np.isinf(report.rank), 1e9, report.rank))
    written = json.loads((report.to_json(tmp_path / "r.json"), (tmp_path / "r.json").read_text())[1])
    again = [math.inf if rank is None else rank for rank in written["per_user"]["rank"]]
    assert again == report.rank.tolist() and math.inf in again
    for name, mask in report.rows.items():
        users = np.flatnonzero(mask)
        hit = float((whole.rank[users] <= 5).mean()) if len(users) else None
        assert written["slices"][name]["users"] == len(users)
        assert written["slices"][name]["recall@5"]["mean"] == (hit if hit is None else pytest.approx(hit))
        row = results_table({"ease": report}, only=name).splitlines()[1].split()
        assert row[:2] == ["ease", str(len(users))]
    seen = {user: DOWN.item[DOWN.user == user][:-1] for user in DOWN.user_codes.tolist()}
    expected = [target in seen[user] for user, target in zip(report.user.tolist(), report.target.tolist(), strict=True)]
    assert report.rows["repeated"].tolist() == expected and any(expected) and not all(expected)
    with pytest.raises(ValueError, match=r"no slice 'old': expected one of \['cold', 'warm', 'repeated', 'new'\]"):
        results_table({"ease": report}, only="old")
    found = compare(report, report, "recall@5", only="repeated")
    assert (found.users, found.method) == (sum(expected), 0.0)


def test_a_run_keeps_and_draws_its_slices(tmp_path: Path) -> None:
    kept = evaluate(EASE(UP), DOWN, exclude_seen=False)
    plain = replace(kept, is_repeat=np.zeros(len(kept), dtype=bool))
    heights = []
    for name, report in (("plain", plain), ("kept", kept)):
        plot_results(tmp_path / f"{name}.png", {"ease": report}, {})
        with Image.open(tmp_path / f"{name}.png") as image:
            heights.append(image.height)
    assert heights[1] > 1.3 * heights[0], "repeated and new targets have panels of their own"
    said: dict[str, Any] = {"dataset": "toy", "split": {"at": 1}, "counts": {}, "seed": 0, "seconds": {}}
    write_results(tmp_path / "results.json", {"ease": kept}, **said)
    found = load_results(tmp_path)
    assert list(found["seen_items"]) == ["ease"] and "kept in" in found["seen_items"]["ease"]
    for name in ("repeated", "new"):
        values = kept.values("mrr@10")[kept.rows[name]]
        assert found["slices"]["ease"][name]["users"] == len(values) > 0
        assert found["slices"]["ease"][name]["mrr@10"]["mean"] == pytest.approx(values.mean())


def test_figures_of_other_rules_are_not_compared() -> None:
    kept, missed = (
        evaluate(EASE(UP), DOWN, exclude_seen=False),
        evaluate(EASE(UP), DOWN, exclude_seen=True, repeated="miss"),
    )
    for compared in (lambda: results_table({"a": kept, "b": missed}), lambda: compare(kept, missed)):
        with pytest.raises(ValueError, match=r"seen .*treated.* exclude_seen of"):
            compared()
    with pytest.raises(ValueError, match="different clicks"):
        compare(missed, evaluate(EASE(UP), DOWN, exclude_seen=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 10}, r"k .*lengths.* 1, as in k=\(10,\), got 10"),
        ({"k": ()}, r"k .*lengths"),
        ({"k": (0, 5)}, r"got \(0, 5\)"),
        ({"k": (True,)}, r"got \(True,\)"),
        ({"k": ("10",)}, r"got \('10',\)"),
        ({"k": "10"}, "got '10'"),
        ({"part": "testing"}, r"part .*of \['validation', 'test', 'serving'\], got 'testing'"),
        ({"repeated": "drop"}, "repeated must be 'leave_out' or 'miss', got 'drop'"),
    ],
)
def test_settings_are_refused_before_anything_is_ranked(settings: dict[str, Any], message: str) -> None:
    method = ByCode()
    with pytest.raises(ValueError, match=message):
        evaluate(method, DOWN, **settings)
    assert not method.lengths


def test_a_score_that_is_no_number_is_found_with_its_user() -> None:
    code = int(DOWN.user_codes[7])
    batch = next(EpisodeSampler(DOWN, users_per_batch=999, part="test").epoch(0))
    history = batch.query.history[batch.user == code][0]

    class Broken(ByCode):
        def adapt(self, support: Examples) -> Scorer:
            def score(examples: Examples) -> Scored:
                found = ByCode().adapt(support)(examples)
                own = (examples.history[:, : len(history)] == history[: examples.history.shape[1]]).all(1)
                return replace(found, scores=found.scores.masked_fill(own[:, None, None], math.nan))

            return score

    user = DOWN.users.decode([code])[0]
    with pytest.raises(
        ValueError, match=rf"evaluating Broken on planted downstream \(test, user '{user}'\): .*score nan"
    ):
        evaluate(Broken(), DOWN, exclude_seen=False)
    with pytest.raises(ValueError, match=r"ranks start at 1, .*code 2"):
        Report(np.array([1, 2]), np.array([1, 2]), np.array([1.0, math.nan]), np.array([True, True]))


def test_a_time_that_is_no_number_vouches_for_nothing() -> None:
    method = ByCode()
    method.fitted_until = math.nan
    with pytest.raises(ValueError, match="until nan"):
        evaluate(method, DOWN)
