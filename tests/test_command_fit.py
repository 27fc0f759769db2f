"""The command that makes a model: what it prints and writes is what the library gives."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import metarec as mr
from metarec.__main__ import main
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.fit_command import in_words
from metarec.recipes.fit_stages import FitProgress
from metarec.types import Progress

LATER = 1_600_000_000
FEW = planted(users=60, items=40)


def rows(data: mr.Dataset) -> pl.DataFrame:
    """The clicks as a frame, in unix seconds."""
    names = {"user_id": data.users.decode(data.user.tolist()), "item_id": data.catalog.items.decode(data.item.tolist())}
    return pl.DataFrame({**names, "timestamp": data.time + LATER})


def write_atomic(data: mr.Dataset, folder: Path) -> Path:
    folder.mkdir()
    frame = rows(data)
    kinds = {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    frame.rename(kinds).write_csv(folder / f"{folder.name}.inter", separator="\t")
    write_features(data, folder)
    return folder


def write_features(data: mr.Dataset, folder: Path) -> Path:
    ids = np.array(data.catalog.items.ids)
    np.savez(folder / "text.npz", ids=ids, feat=data.catalog["text"].features[1:].numpy())
    return folder / "text.npz"


def run(*arguments: object) -> None:
    main(["fit", *map(str, arguments)])


def results(model: Path) -> Any:
    return json.loads((model.parent / "results.json").read_text(encoding="utf-8"))


def means(found: Any) -> dict[str, float]:
    return {name: value["mean"] for name, value in found["methods"]["fit"].items()}


@pytest.mark.parametrize("kind", ["atomic", "parquet", "csv"])
def test_few_users_get_what_the_library_gives(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "model.safetensors"
    if kind == "atomic":
        run(write_atomic(FEW, tmp_path / "shop"), "--out", out)
    else:
        clicks, items = tmp_path / f"clicks.{kind}", tmp_path / "items.parquet"
        rows(FEW).write_parquet(clicks) if kind == "parquet" else rows(FEW).write_csv(clicks)
        titles = [f"thing {name}" for name in FEW.catalog.items.ids]
        pl.DataFrame({"item_id": FEW.catalog.items.ids, "title": titles}).write_parquet(items)
        run(clicks, "--out", out, "--items", items, "--features", f"text={write_features(FEW, tmp_path)}")
    data = mr.Dataset.from_frame(rows(FEW), features={"text": write_features(FEW, tmp_path)})
    at = mr.split_time(data, 0.2)
    up, down = mr.split_by_time(data, at)
    expected, model = mr.fit(up), mr.load(out)
    assert set(model.catalog.items.ids) == set(FEW.catalog.items.ids) and list(model.catalog.modalities) == ["text"]
    assert kind == "atomic" or model.catalog.attributes["title"][0] == "thing item0"
    report = mr.evaluate(expected, down)
    assert mr.evaluate(model, down).rank.tolist() == report.rank.tolist()
    found = results(out)
    assert means(found) == {name: metric.mean for name, metric in report.metrics.items()}
    assert found["split"] == {"at": at} and found["counts"]["upstream users"] == len(up.user_codes)
    assert replace(mr.recipes.FitReport.of(found["fitted"]), seconds=0.0) == replace(expected.report, seconds=0.0)
    assert (out.parent / "fit.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(line in printed.splitlines() for line in [*str(report).splitlines()[1:], *expected.report.notes])


def test_a_fit_that_chooses_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = planted(users=200, items=60)
    folder, out = write_atomic(data, tmp_path / "shop"), tmp_path / "model.safetensors"
    arguments = (folder, "--out", out, "--budget", 0.1, "--folder", tmp_path / "stages", "--seed", 3)
    run(*arguments)
    model, found = mr.load(out), results(out)
    _, down = mr.split_by_time(mr.load_atomic(folder, ("text",)), found["split"]["at"])
    assert means(found) == {name: metric.mean for name, metric in mr.evaluate(model, down).metrics.items()}
    assert found["fitted"] == model.report.to_dict() and found["seed"] == 3
    kinds = {candidate.kind for candidate in model.report.candidates}
    assert kinds >= {"ensemble", "part"} and str(model.report) in capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    assert any("training" in path.name for path in kept)
    run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_live_counts_on_demand(tmp_path: Path) -> None:
    rows(FEW).write_parquet(tmp_path / "clicks.parquet")
    for options, information in (([], "upstream"), (["--live"], "live")):
        out = tmp_path / information / "model.safetensors"
        run(tmp_path / "clicks.parquet", "--out", out, *options)
        data = mr.Dataset.from_frame(rows(FEW))
        up, down = mr.split_by_time(data, mr.split_time(data, 0.2))
        expected = mr.evaluate(mr.fit(up, live=data if options else None), down)
        assert expected.information == information and results(out)["settings"]["live"] == bool(options)
        assert means(results(out)) == {name: metric.mean for name, metric in expected.metrics.items()}


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ([], mr.split_time(FEW, 0.2) + LATER),
        (["--cold-users", "0.4"], mr.split_time(FEW, 0.4) + LATER),
        (["--split", f"{PLANTED_SPLIT + LATER}"], PLANTED_SPLIT + LATER),
        (["--split", datetime.fromtimestamp(PLANTED_SPLIT + LATER, UTC).isoformat()], PLANTED_SPLIT + LATER),
    ],
)
def test_where_it_splits(options: Sequence[str], at: int, tmp_path: Path) -> None:
    rows(FEW).write_parquet(tmp_path / "clicks.parquet")
    out = tmp_path / "model"
    run(tmp_path / "clicks.parquet", "--out", out, *options)
    assert results(out)["split"]["at"] == at
    before = rows(FEW).filter(pl.col("timestamp") <= at)["timestamp"]
    assert mr.load(out).fitted_until <= at and results(out)["counts"]["upstream interactions"] <= len(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLICKS"], "required: --out"),
        (["CLICKS", "--out", "."], r"\. is a folder; --out"),
        (["CLICKS", "--out", "results.json"], "results.json and fit.png"),
        (["gone.parquet", "--out", "MODEL"], "gone.parquet: no such file"),
        (["CLICKS", "--out", "MODEL", "--budget", "0"], "--budget: expected a number of at least 0.01, got '0'"),
        (["CLICKS", "--out", "MODEL", "--cold-users", "20"], "--cold-users: expected a number from 0.01 to 0.9"),
        (
            ["CLICKS", "--out", "MODEL", "--cold-users", "0.2", "--split", "1"],
            "--split: not allowed with .*--cold-users",
        ),
        (["CLICKS", "--out", "MODEL", "--split", "May"], "--split: expected a time .*2024-05-01, got 'May'"),
        (["CLICKS", "--out", "MODEL", "--features", "text.npz"], "--features: expected NAME=FILE"),
        (["ATOMIC", "--out", "MODEL", "--items", "CLICKS"], "--items is for Parquet and CSV"),
        (["ATOMIC", "--out", "MODEL", "--users", "CLICKS"], "--users is for Parquet and CSV"),
        (["CLICKS", "--out", "MODEL", "--positive", "rating"], "--positive: .*rating=4, got 'rating'"),
        (["CLICKS", "--out", "MODEL", "--weight", "stars"], "no column 'stars'"),
        (["CLICKS", "--out", "MODEL", "--profile", "age"], "profile"),
        (["CLICKS", "--out", "MODEL", "--user", "wer"], "no column 'wer'"),
        (["CLICKS", "--out", "MODEL", "--device", "abacus"], "'abacus' is not to be had"),
    ],
)
def test_a_wrong_option_says_what_is_meant(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(FEW).write_parquet(tmp_path / "clicks.parquet")
    files = {"CLICKS": str(tmp_path / "clicks.parquet"), "MODEL": str(tmp_path / "model")}
    files["ATOMIC"] = str(write_atomic(FEW, tmp_path / "shop"))
    with pytest.raises(SystemExit, match=message) as refused:
        main(["fit", *(files.get(word, word) for word in arguments)])
    assert refused.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "model").exists()


def test_the_progress_names_epoch_and_time_left() -> None:
    step = Progress("SASRec", 3, 200, 10, 100, 4.25, 50.0)
    assert re.findall(r"\d+", in_words(FitProgress("training", 0.2, 3700.0, step))) == ["3", "200", "1", "01", "40"]


@pytest.mark.parametrize("kind", ["atomic", "parquet"])
def test_attributes_profiles_weights_and_rules_reach_the_fit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = rows(FEW).with_columns(rating=pl.int_range(pl.len()) % 5 + 0.5)
    items = pl.DataFrame({"item_id": FEW.catalog.items.ids, "kind": [f"k{n % 3}" for n in range(40)]})
    users = pl.DataFrame({"user_id": FEW.users.ids, "age": [20.0 + n % 30 for n in range(60)]})
    expected = mr.Dataset.from_frame(
        clicks, items, attributes=["kind"], users=users, profile=["age"], weight="rating", positive={"rating": 1}
    )
    folder = tmp_path / "shop"
    folder.mkdir()
    for end, frame in (("inter", clicks), ("item", items), ("user", users)):
        if kind == "atomic":
            floats = ("age", "rating", "timestamp")
            typed = {name: f"{name}:{'float' if name in floats else 'token'}" for name in frame.columns}
            frame.rename(typed).write_csv(folder / f"shop.{end}", separator="\t")
        else:
            frame.write_parquet(folder / f"{end}.parquet")
    seen: list[mr.Dataset] = []
    monkeypatch.setattr("metarec.fit_command.fit", lambda up, **how: seen.append(up) or mr.fit(up, **how))
    source = [folder] if kind == "atomic" else [folder / "inter.parquet", "--items", folder / "item.parquet"]
    source += [] if kind == "atomic" else ["--users", folder / "user.parquet"]
    learned = ["--attributes", "kind", "--profile", "age", "--weight", "rating", "--positive", "rating=1"]
    run(*source, *learned, "--out", tmp_path / "model")
    up = mr.split_by_time(expected, mr.split_time(expected, 0.2))[0]
    (got,) = seen
    assert np.array_equal(got.weight, up.weight) and np.array_equal(got.item, up.item)
    assert got.weight.min() > 1 and len(expected) < len(clicks)
    assert np.array_equal(got.catalog["attributes"].features, up.catalog["attributes"].features)
    assert np.array_equal(got.profiles.features, up.profiles.features)
    settings = results(tmp_path / "model")["settings"]
    assert settings["attributes"] == ["kind"] and settings["positive"] == [["rating", 1.0]]
