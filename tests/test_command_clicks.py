"""The commands that read clicks: what they print and write is what the library gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import metarec as mr
from metarec.__main__ import main
from metarec.data.examples import UNKNOWN, begun_after, on_catalog
from tiny import DOWN, TWO_LEARNERS, WORLD, trained

CLICKS = pl.DataFrame(
    {
        "user_id": WORLD.users.decode(WORLD.user.tolist()),
        "item_id": WORLD.catalog.items.decode(WORLD.item.tolist()),
        "timestamp": WORLD.time,
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    mr.save(trained(TWO_LEARNERS), path)
    return path


@pytest.fixture(params=["parquet", "csv"])
def clicks(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"clicks.{request.param}"
    shuffled = CLICKS.sample(fraction=1.0, shuffle=True, seed=1)
    shuffled.write_parquet(path) if request.param == "parquet" else shuffled.write_csv(path)
    return path


def test_evaluate_is_the_evaluation_of_those_who_came_after_training(
    model: Path, clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = mr.evaluate(mr.load(model), DOWN, k=[3, 7])
    for ending in ("json", "csv", "parquet"):
        main(["evaluate", str(model), str(clicks), "--k", "3", "7", "--out", str(tmp_path / f"report.{ending}")])
        assert str(expected).splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["metrics"] == expected.to_dict()["metrics"]
    assert found["per_user"]["rank"] == expected.rank.tolist()
    assert pl.read_parquet(tmp_path / "report.parquet").equals(expected.to_frame())
    assert pl.read_csv(tmp_path / "report.csv")["mean"].to_list() == pytest.approx(
        expected.to_frame()["mean"].to_list()
    )


def test_recommend_gives_every_user_the_list_of_a_recommender(model: Path, clicks: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.parquet"
    main(["recommend", str(model), str(clicks), "--k", "4", "--out", str(out)])
    lists = pl.read_parquet(out)
    recommender = mr.Recommender.load(model)
    rows = CLICKS.sort("timestamp", maintain_order=True)
    for user in WORLD.users.ids:
        own = lists.filter(pl.col("user") == user)
        history = rows.filter(pl.col("user_id") == user)["item_id"].to_list()
        expected = recommender.adapt(history).recommend(k=4)
        assert own["item"].to_list() == [entry.id for entry in expected] and own["rank"].to_list() == [1, 2, 3, 4]
        assert own["score"].to_list() == pytest.approx([entry.score for entry in expected], rel=1e-4)


def test_recommend_to_one_history(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recommend", str(model), "--history", "item3", "item14", "--k", "3"])
    lines = capsys.readouterr().out.splitlines()
    expected = mr.Recommender.load(model).adapt(["item3", "item14"]).recommend(k=3)
    assert [line.split(",")[2] for line in lines] == ["item", *(entry.id for entry in expected)]


def test_a_history_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = pl.DataFrame({"user": WORLD.user, "item": WORLD.item * 3, "time": WORLD.time})
    data = mr.Dataset.from_frame(numbers)
    mr.save(mr.MML.build(data, mr.MMLConfig(dim=8, modalities=())), tmp_path / "model")
    main(["recommend", str(tmp_path / "model"), "--history", "3", "12", "--k", "2"])
    items = [int(line.split(",")[2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(items) == 2 and set(items) <= set(data.catalog.items.ids)
    numbers.write_csv(tmp_path / "clicks.csv")  # whose ids are text
    main(["recommend", str(tmp_path / "model"), str(tmp_path / "clicks.csv"), "--out", str(tmp_path / "lists.json")])
    assert {type(row["item"]) for row in json.loads((tmp_path / "lists.json").read_text(encoding="utf-8"))} == {int}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "MODEL"], "recommend: .*--users.*--history.*--profile"),
        (["recommend", "MODEL", "CLICKS", "--history", "item3"], "recommend: .*--users.*--history.*--profile"),
        (["recommend", "MODEL", "--history", "itm"], "unknown item id 'itm'"),
        (["recommend", "MODEL", "CLICKS", "--out", "lists.xlsx"], r"lists.xlsx: expected a file that ends in .csv"),
        (["evaluate", "MODEL", "CLICKS", "--out", "x.txt"], r"x.txt: expected a file that ends in"),
        (["evaluate", "MODEL", "gone.parquet"], "gone.parquet: no such file"),
        (["evaluate", "MODEL", "CLICKS", "--user", "wer"], "no column 'wer'"),
        (["evaluate", "MODEL", "EARLY"], "no user began after .*unit"),
        (["evaluate", "MODEL", "OTHERS"], "no click is on an item of the model; .*'item0'.*'nothing'"),
        (["evaluate", "MODEL", "CLICKS", "--k", "0"], "expected a number of at least 1"),
        (["evaluate", "MODEL"], "the following arguments are required: clicks"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = {
        "CLICKS": CLICKS,
        "EARLY": CLICKS.with_columns(pl.col("timestamp") // 1000),
        "OTHERS": CLICKS.with_columns(pl.lit("nothing").alias("item_id")),
    }
    files = {"MODEL": str(model)}
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
        files[name] = str(tmp_path / f"{name}.parquet")
    with pytest.raises(SystemExit, match=message) as refused:
        main([files.get(word, word) for word in arguments])
    assert refused.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_clicks_under_the_codes_of_another_catalogue() -> None:
    names = [f"item{number}" for number in (7, 3, 30, 12)]
    catalog, warm = mr.Catalog(mr.Vocabulary(names)), np.array([False, True, True, False, True])
    there = on_catalog(WORLD, catalog, warm)
    rows = [
        (user, names.index(item) + 1, time)
        for user, item, time in zip(
            WORLD.user, WORLD.catalog.items.decode(WORLD.item.tolist()), WORLD.time, strict=True
        )
        if item in names
    ]
    assert list(zip(there.user, there.item, there.time, strict=True)) == rows
    assert there.dropped[UNKNOWN] == len(WORLD) - len(rows) and there.warm is warm
    late = begun_after(there, int(np.median(there.time)))
    firsts = {user: min(time for who, _, time in rows if who == user) for user, _, _ in rows}
    assert set(late.user.tolist()) == {user for user, first in firsts.items() if first > int(np.median(there.time))}
