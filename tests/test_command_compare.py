"""The command that compares: what it prints and writes is what the library gives; and words that are nearly right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import metarec as mr
from metarec.__main__ import main
from metarec.comparison import compare
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import EASE, ItemKNN, Popularity
from metarec.report import results_table


def frames(data: mr.Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Clicks and items, without features."""
    ids = {"user_id": data.users.decode(data.user.tolist()), "item_id": data.catalog.items.decode(data.item.tolist())}
    items = {"item_id": data.catalog.items.ids, "cluster": data.catalog.attributes["cluster"]}
    return pl.DataFrame({**ids, "timestamp": data.time}), pl.DataFrame(items)


CLICKS, ITEMS = frames(planted(users=150, items=40))
DATA = mr.Dataset.from_frame(CLICKS, ITEMS)
UP, DOWN = mr.split_by_time(DATA, at=PLANTED_SPLIT)
OTHER, _ = mr.split_by_time(planted(users=150, items=50), at=PLANTED_SPLIT)


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    CLICKS.write_parquet(tmp_path / "clicks.parquet")
    return tmp_path / "clicks.parquet"


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    out = []
    for model in (Popularity(UP), EASE(UP)):
        out.append(str(tmp_path / f"{type(model).__name__}.safetensors"))
        mr.save(model, out[-1])
    return out


def run(*words: object) -> None:
    main(["compare", *map(str, words)])


def test_saved_models_are_compared_on_those_who_came_after_training(
    models: list[str], clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    run(*models, clicks, "--k", 5, 10, "--out", out, "--seed", 3, "--metric", "recall@5")
    popular, ease = (mr.evaluate(mr.load(path), DOWN, k=(5, 10)) for path in models)
    printed = capsys.readouterr().out
    table = results_table({"Popularity": popular, "EASE": ease})
    assert printed.startswith(table)
    expected = compare(ease, popular, "recall@5", seed=3)
    assert f"{expected.relative_gain:+.1%}" in printed and f"{expected.interval_high:+.1%}" in printed
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["comparisons"] == {"EASE": expected.to_dict()}
    assert found["methods"]["Popularity"]["metrics"] == popular.to_dict()["metrics"]
    assert found["methods"]["EASE"]["beyond_accuracy"]["novelty@5"] == ease.beyond["novelty@5"].to_dict()
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_recipes_are_fitted_on_the_upstream_side(
    models: list[str], clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    run("itemknn", "ease", clicks, "--split", PLANTED_SPLIT, "--baseline", "ease", "--out", out)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["methods"]["itemknn"]["metrics"] == mr.evaluate(ItemKNN(UP), DOWN).to_dict()["metrics"]
    assert list(found["comparisons"]) == ["itemknn"]
    run(models[1], "ease", clicks, "--out", out)  # where the saved one's training ended
    beside = json.loads(out.read_text(encoding="utf-8"))
    assert beside["methods"]["ease"]["metrics"] == beside["methods"]["EASE"]["metrics"]
    assert "+0.0% (+0.0% to +0.0%)" in capsys.readouterr().out


def test_where_nothing_else_says_the_last_users_to_start_are_asked(clicks: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run("popularity", "ease", clicks, "--cold-users", 0.3, "--out", out)
    up, down = mr.split_by_time(DATA, mr.split_time(DATA, 0.3))
    expected = mr.evaluate(EASE(up), down).to_dict()
    found = json.loads(out.read_text(encoding="utf-8"))["methods"]["ease"]
    assert (found["metrics"], found["users"]) == (expected["metrics"], expected["users"])


def test_models_that_know_different_things_have_tables_of_their_own_and_no_difference(
    models: list[str], clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = mr.recipes.LivePopularity(DATA, window=1e6)
    mr.save(live, tmp_path / "live.safetensors")
    run(*models, tmp_path / "live.safetensors", clicks, "--split", PLANTED_SPLIT)
    printed = capsys.readouterr().out
    assert "method (upstream)" in printed and "method (live)" in printed
    assert [line.split(":")[0] for line in printed.splitlines() if " over the baseline" in line] == ["EASE"]


def test_what_cannot_be_compared_is_named(models: list[str], clicks: Path, tmp_path: Path) -> None:
    mr.save(EASE(OTHER), tmp_path / "other.safetensors")
    cases = {
        "coclicks": ["coclick", "ease", clicks],
        "items": [models[0], tmp_path / "other.safetensors", clicks],
        "twice": ["ease", "ease", clicks],
        "--baseline": ["ease", "itemknn", clicks, "--baseline", "popularity"],
        ".json": ["ease", "itemknn", clicks, "--out", tmp_path / "found.csv"],
        "ndgc@10": ["ease", "itemknn", clicks, "--metric", "ndgc@10"],
    }
    for word, arguments in cases.items():
        with pytest.raises(SystemExit, match=word):
            run(*arguments)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evalute", "model", "clicks"], "evaluate"),
        (["fit", "clicks", "--out", "x", "--colduser", "0.1"], "--cold-users"),
        (["fit", "clicks", "--out", "x", "--buget=3"], "--budget"),
        (["evaluate", "model", "clicks", "--part", "tset"], "test"),
        (["serve", "model", "--alow-changes"], "--allow-changes"),
        (["recommend", "model", "--histroy", "a"], "--history"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(words: list[str], meant: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert f"did you mean {meant}?" in str(refused.value) and refused.value.code == 2
    with pytest.raises(SystemExit) as refused:
        main(["serve", "model", "--qqqqqqqq"])
    assert "did you mean" not in str(refused.value)


def test_lists_differ_on_demand(models: list[str], tmp_path: Path) -> None:
    words = ["recommend", models[1], "--history", "item3", "--k", "4", "--out", str(tmp_path / "lists.csv")]
    main([*words, "--diversity", "cluster=1"])
    expected = mr.Recommender.load(models[1]).adapt(["item3"]).recommend(k=4, diversity={"cluster": 1})
    assert pl.read_csv(tmp_path / "lists.csv")["item"].to_list() == [entry.id for entry in expected]
    for wrong, said in (("half", "half"), ("0.5", "features"), ("genre=2", "genre"), ("cluster=x", "cluster=x")):
        with pytest.raises(SystemExit, match=said):
            main([*words, "--diversity", wrong])


def test_a_category_reaches_the_report(models: list[str], clicks: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "report.json", mr.load(models[1])
    main(["evaluate", models[1], str(clicks), "--category", "cluster", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))["per_user"]["miscalibration@10"]
    assert found == mr.evaluate(model, DOWN, category="cluster").lists["miscalibration@10"].tolist()
    assert not np.allclose(found, mr.evaluate(model, DOWN).lists["miscalibration@10"])
