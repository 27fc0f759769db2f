"""Data read apart from those a model was fitted on: profiles and kinds of events mean what they mean to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

import metarec as mr
from kind_worlds import carts
from metarec.__main__ import main
from metarec.data.examples import on_catalog
from metarec.recipes import Ensemble, Popularity, ProfilePopularity, sasrec

CLICKS = pl.DataFrame({"user": [*"abcd"] * 4, "item": [*"xxyyxxyzxzyyxxyy"], "time": range(16)})
PEOPLE = pl.DataFrame({"user": [*"abcd"], "sex": [*"ffmm"], "age": [20.0, 30.0, 40.0, 50.0]})
LATER = CLICKS.with_columns(time=pl.col("time") + 100, user=pl.col("user") + "2")
OTHERS = pl.DataFrame({"user": ["a2", "b2", "c2", "d2"], "sex": ["m", "f", "m", "x"], "age": [50.0, 60.0, None, 20.0]})


def _model() -> ProfilePopularity:
    return ProfilePopularity(mr.Dataset.from_frame(CLICKS, users=PEOPLE, profile=["sex", "age"]))


def test_profiles_are_encoded_as_the_model_encodes_them(tmp_path: Path) -> None:
    model = _model()
    data = mr.Dataset.from_frame(LATER, users=OTHERS, profile=model.profile)
    assert data.profiles is not None and data.profiles.encodings == model.profile
    for row, person in zip(data.profiles.features[1:], OTHERS.iter_rows(named=True), strict=True):
        told = {name: value for name, value in person.items() if name != "user" and value is not None}
        users = mr.Recommender(model).adapt([], profile=told).users
        assert torch.equal(users.state.tensors["profile"][0], row)
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = "\n".join("\t".join(map(str, row)) for row in LATER.rows())
    (folder / "shop.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{rows}")
    people = "\n".join("\t".join("" if v is None else str(v) for v in row) for row in OTHERS.rows())
    (folder / "shop.user").write_text(f"user_id:token\tsex:token\tage:float\n{people}")
    atomic = mr.load_atomic(folder, profile=model.profile).profiles
    assert atomic is not None and torch.equal(atomic.features, data.profiles.features)


def test_profiles_that_are_encoded_otherwise_are_refused() -> None:
    model = _model()
    own, apart = (mr.Dataset.from_frame(LATER, users=OTHERS, profile=how) for how in (model.profile, ["sex", "age"]))
    up = mr.Dataset.from_frame(CLICKS, users=PEOPLE, profile=["sex", "age"])
    for one in (model, Ensemble({"profile": model, "popularity": Popularity(up)}, up)):
        mr.evaluate(one, own)
        with pytest.raises(ValueError, match=r"profile=model\.profile"):
            mr.evaluate(one, apart)
    with pytest.raises(ValueError, match="age"):
        mr.Dataset.from_frame(LATER, users=OTHERS, profile={**model.profile, "age": None})


def test_kinds_of_data_read_apart_are_told_by_their_names() -> None:
    data = mr.Dataset.from_frame(carts(users=80), kind="kind", target="buy")
    up, _ = mr.split_by_time(data, mr.split_time(data))
    model = sasrec.build(up, dim=8).eval()
    later = carts(users=80).filter(pl.col("kind") != "cart", pl.col("time") > up.time.max())
    apart = mr.Dataset.from_frame(later, kind="kind", target="buy")
    assert apart.catalog.kinds == ("buy", "view")
    items = replace(data.catalog, kinds=apart.catalog.kinds)
    item = items.items.encode(apart.catalog.items.decode(apart.item))
    others = apart.others and replace(
        apart.others, item=items.items.encode(apart.catalog.items.decode(apart.others.item))
    )
    with pytest.raises(ValueError, match="kinds"):
        mr.evaluate(model, replace(apart, catalog=items, item=item, others=others, warm=up.warm))
    assert model.catalog is not None and model.warm is not None
    moved = on_catalog(apart, model.catalog, model.warm)
    assert moved.others is not None and set(moved.others.kind) == {model.catalog.kinds.index("view")}


def test_the_command_line_takes_kinds_and_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clicks, model = tmp_path / "events.parquet", tmp_path / "shop.safetensors"
    carts(users=60).write_parquet(clicks)
    main(["fit", str(clicks), "--kind", "kind", "--target", "buy", "--out", str(model), "--budget", "0.05"])
    assert mr.load(model).catalog.kinds == ("buy", "cart", "view")
    lists = tmp_path / "lists.csv"
    main(["recommend", str(model), str(clicks), "--kind", "kind", "--k", "2", "--out", str(lists)])
    found = pl.read_csv(lists)
    data = mr.Dataset.from_frame(carts(users=60), kind="kind", target="buy")
    own = carts(users=60).filter(pl.col("user") == 7).sort("time")
    user = mr.Recommender(mr.load(model)).adapt(own["item"].to_list(), kinds=own["kind"].to_list())
    assert found.filter(pl.col("user") == 7)["item"].to_list() == [one.id for one in user.recommend(k=2)]
    assert len(found["user"].unique()) == len(data.user_codes)
    main(["evaluate", str(model), str(clicks), "--kind", "kind", "--out", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text())["users"] > 0
    people, profiled = tmp_path / "people.parquet", tmp_path / "profiled.safetensors"
    OTHERS.write_parquet(people)
    LATER.write_parquet(tmp_path / "later.parquet")
    mr.save(_model(), profiled)
    main(["evaluate", str(profiled), str(tmp_path / "later.parquet"), "--users", str(people)])
    with_profiles = capsys.readouterr().out
    main(["evaluate", str(profiled), str(tmp_path / "later.parquet")])
    assert with_profiles != capsys.readouterr().out
