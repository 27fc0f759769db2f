"""benchmarks/quality.py from end to end on a small planted world, and its summary against hand-made reports."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metarec.evaluation import evaluate
from metarec.recipes import mml_blend
from metarec.report import Report

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--data", "planted", "--tiny", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_the_path() -> None:
    sys.path.insert(0, str(BENCHMARKS))


def report(rank: list[float], information: str = "upstream") -> Report:
    user = np.arange(len(rank))
    return Report(user, user, np.array(rank), user % 2 == 1, k=(10,), info={"information": information, "data": "d"})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one command makes of a small planted world."""
    sys.path.insert(0, str(BENCHMARKS))
    import quality

    path = tmp_path_factory.mktemp("quality") / "quality_planted.json"
    quality.main([*TINY, "--out", str(path)])
    return path


def test_ours_is_what_a_user_gets(out: Path) -> None:
    import quality

    options = quality.parse(TINY)
    world, settings = quality.make_world(options, 0.2), quality.settings_of(options)
    by_name = {row["method"]: row["metrics"] for row in json.loads(out.read_text())["methods"]}
    for name, live in (("MML blend", None), ("live MML blend", world.everything)):
        shipped = mml_blend(world.up, settings.config, live=live, sasrec_epochs=settings.sasrec_epochs)
        metrics = evaluate(shipped, world.down).metrics
        assert {metric: by_name[name][metric]["mean"] for metric in metrics} == pytest.approx(
            {metric: value.mean for metric, value in metrics.items()}
        )


def test_one_command_makes_everything(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import quality_tables

    found = json.loads(out.read_text())
    assert {(row["users"], row["clicks"]) for row in found["headline"]} == {(60, 60)}
    assert {(row["users"], row["clicks"]) for row in found["several_positions"]} == {(60, 180)}
    (split,) = found["splits"]
    assert split["headline"] == found["headline"] and split["cold_users"] == 0.2
    assert {(row["information"], row["metric"]) for row in found["headline"]} == {
        (information, metric) for information in ("upstream", "live") for metric in ("ndcg@10", "recall@10")
    }
    by_name = {row["method"]: row for row in found["methods"]}
    for row in found["headline"]:
        assert row["mml"] == pytest.approx(by_name[row["method"]]["metrics"][row["metric"]]["mean"])
        assert row["baseline"] == pytest.approx(by_name[row["best_baseline"]]["metrics"][row["metric"]]["mean"])
        assert row["relative_gain"] == pytest.approx(row["mml"] / row["baseline"] - 1)
        baselines = [r for n, r in by_name.items() if "MML" not in n and "(control)" not in n]
        same = [r for r in baselines if r["information"] == row["information"]]
        assert row["baseline"] == pytest.approx(max(r["metrics"][row["metric"]]["mean"] for r in same))
    assert all(row["metrics"]["ndcg@10"].keys() == {"mean", "se"} and row["seed"] == 0 for row in found["methods"])
    assert {row["information"] for row in found["methods"] if "live" in row["method"]} == {"live"}
    assert {row["information"] for row in found["cold_items"]} == {"upstream", "live"}
    assert [row["clicks"] for row in found["adaptation"]] == [1, 2, 3, 5, 10, 50]
    assert found["adaptation_always"][0]["gain"] == 0  # one click leaves nothing to adapt to
    assert all(row["rate_0_equals_0_steps"] for row in found["adaptation"] + found["adaptation_always"])
    if not any(found["chosen"][f"MML {name}, steps, seed 0, split 0.2"] for name in ("id", "image", "text")):
        assert all(row["gain"] == 0 for row in found["adaptation"])
    assert {row["method"] for row in found["tried"]} >= {
        "EASE",
        "ItemKNN",
        "popularity, live decay",
        "late fusion, gate",
    }
    assert all("upstream downstream" in row["data"] for row in found["tried"] if "data" in row)  # never the test users
    capsys.readouterr()
    quality_tables.main([str(out)])
    printed = capsys.readouterr().out
    assert all(f"| {name} | 1 |" in printed for name in by_name)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_headline_is_against_the_best_baseline_of_the_same_information() -> None:
    from quality_summary import CONTROLS, FUSION, OURS, Results, complete, summary

    results = Results()
    ranks = {
        "weak": [9.0, 9.0, 9.0, 9.0],
        "strong": [2.0, 2.0, 4.0, 9.0],
        CONTROLS["upstream"]: [3.0, 11.0, 3.0, 11.0],
        "MML something": [1.0, 1.0, 1.0, 1.0],  # ours, so no baseline
        OURS["upstream"]: [1.0, 2.0, 1.0, 9.0],
    }
    results.reports |= {name: report(rank) for name, rank in ranks.items()}
    assert not complete([results])
    for name in ("live late fusion, gate", CONTROLS["live"], OURS["live"]):
        results.reports[name] = report([1.0, 2.0, 3.0, 4.0], "live")
    results.reports["full_retrain"] = report([1.0, 1.0, 1.0, 1.0], "later")  # knows too much to be a baseline
    for way in ("always", "adapted", "0 steps", "rate 0"):
        last = {"adapted": 2.0, "always": 4.0}.get(way, 3.0)
        results.slices[FUSION, way, 3] = report([2.0, 2.0, 2.0, last])
    assert complete([results])
    found = summary([results])
    first = found["headline"][0]
    assert (first["best_baseline"], first["information"], first["metric"]) == ("strong", "upstream", "ndcg@10")
    gain = lambda rank: sum(1 / np.log2(1 + r) for r in rank if r <= 10) / 4  # noqa: E731
    assert first["mml"] == pytest.approx(gain(ranks["MML blend"]))
    assert first["baseline"] == pytest.approx(gain(ranks["strong"]))
    control = found["controls"][0]
    assert control["baseline"] == pytest.approx(gain(ranks[CONTROLS["upstream"]])) and control["mml"] == first["mml"]
    cold = found["cold_items"][0]
    assert cold["mml"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(10)) / 2)
    assert found["adaptation"][0]["gain"] == pytest.approx((1 / np.log2(3) - 1 / np.log2(4)) / 4)
    assert found["adaptation_always"][0]["gain"] == pytest.approx((1 / np.log2(5) - 1 / np.log2(4)) / 4)
    assert {row["information"] for row in found["against"]} == {"upstream", "live"}
    assert len(found["methods"]) == 9


def test_splits_are_pooled_seed_by_seed_and_users_stay_together() -> None:
    from quality_summary import Results, pool

    users = {0.1: [7, 7, 9], 0.2: [4, 7, 7, 9]}  # the last click of each user first
    ranks = {0.1: [1.0, 2.0, 3.0], 0.2: [4.0, 5.0, 6.0, 7.0]}
    runs = []
    for seed, splits in ((0, (0.2, 0.1)), (1, (0.1,))):  # the second seed has not been through both splits
        for split in splits:
            user, rank = np.array(users[split]), np.array(ranks[split]) + 10 * seed
            runs.append(Results(seed, split, {"a": Report(user, user + 100, rank, user > 8, k=(10,))}))
    runs.append(Results(0, 0.1, {"b": report([1.0])}))  # only at one split
    pooled = pool(runs)
    assert pooled.seeds == {"a": [0]} and set(pooled.reports) == {"a"}
    (last,), (every,) = pooled.reports["a"], pooled.all_clicks["a"]
    assert (last.user.tolist(), last.rank.tolist()) == ([4, 7, 7, 9, 9], [4.0, 1.0, 5.0, 3.0, 7.0])
    assert (every.user.tolist(), every.rank.tolist()) == ([4, 7, 7, 7, 7, 9, 9], [4.0, 1.0, 2.0, 5.0, 6.0, 3.0, 7.0])
    assert every.target.tolist() == (every.user + 100).tolist()
    assert every.is_cold.tolist() == (every.user > 8).tolist()


def test_any_atomic_files_with_features_can_be_compared(tmp_path: Path) -> None:
    import quality

    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    rows += [f"u{user}\ti{(user + click) % 7}\t{100 * user + click}" for user in range(10) for click in range(8)]
    (tmp_path / "toy.inter").write_text("\n".join(rows))
    options = ["--data", str(tmp_path / "toy.inter"), "--first-clicks", "5", "--day", "10", "--device", "cpu"]
    with pytest.raises(ValueError, match=r"no .*features"):
        quality.main(options)
    np.savez(tmp_path / "text.npz", ids=np.array([f"i{i}" for i in range(7)]), feat=np.eye(7, dtype=np.float32))
    world = quality.make_world(quality.parse(options), 0.3)
    assert world.day == 10 and len(world.everything) == 50
    assert sorted(world.down.users.decode(world.down.user_codes)) == ["u7", "u8", "u9"]
    assert world.down.time.tolist() == [100 * user + click for user in (7, 8, 9) for click in range(5)]


def test_a_method_is_asked_about_each_batch_once() -> None:
    from quality_run import Once

    from metarec.data import EpisodeSampler
    from metarec.datasets import planted
    from metarec.recipes import ItemKNN
    from metarec.types import Examples, Scorer

    data = planted(users=40, items=30)
    knn, asked = ItemKNN(data), []

    class Counting:
        information = "live"

        def adapt(self, support: Examples) -> Scorer:
            asked.append(support)
            return knn.adapt(support)

    once = Once(Counting())
    batches = list(EpisodeSampler(data, part="serving", users_per_batch=16).epoch(0))
    for _ in range(2):
        for batch in batches:
            found, expected = (method.adapt(batch.support)(batch.query) for method in (once, knn))
            assert found.scores.equal(expected.scores) and found.item_mask.equal(expected.item_mask)
    assert len(asked) == len(batches) == 3 and once.information == "live"
    once.forget()
    once.adapt(batches[0].support)(batches[0].query)
    assert len(asked) == 4 and once.kept is None
