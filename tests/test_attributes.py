"""Attributes of items from files and frames to lists: what is read, learned, added, saved and served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr
from fit_worlds import shorten
from metarec.data import Catalog, Dataset, load_atomic
from metarec.data.attributes import Column, fit_encodings
from metarec.files import read_tensors, write_tensors
from metarec.recipes import MML, sasrec
from optional import imported
from service_helpers import ask, running
from serving_worlds import lively
from tiny import CONFIG, DOWN, UP

CLICKS = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["b", "a", "d"], "timestamp": [1, 2, 3]})
ITEMS = pl.DataFrame(
    {
        "item_id": ["c", "a", "b"],
        "genres": [["War", "Drama"], ["War"], ["Drama", "Noir"]],
        "maker": ["x y", None, "x y"],
        "price": [3.0, 1.0, None],
        "used": [True, True, False],
    }
)
NAMES = ["genres", "maker", "price", "used"]


def learned(data: Dataset, clusters: list[str], prices: list[float | None]) -> Dataset:
    """The same with attributes in place of vectors."""
    columns = {"price": Column(prices, numbers=True), "cluster": Column(clusters)}  # an order that files must keep
    encodings, modality = fit_encodings(columns, "items")
    texts = {"cluster": clusters, "price": ["" if price is None else str(price) for price in prices]}
    catalog = Catalog(data.catalog.items, {modality.name: modality}, texts, encodings=encodings)
    return replace(data, catalog=catalog)


def world(data: Dataset) -> Dataset:
    clusters = list(data.catalog.attributes["cluster"])
    return learned(data, clusters, [None if n % 7 == 0 else float(n % 5) for n in range(len(clusters))])


SHOP, LATER = world(UP), world(DOWN)


def test_columns_of_a_frame_are_one_modality_in_the_order_of_the_items() -> None:
    data = Dataset.from_frame(CLICKS, ITEMS, attributes=NAMES)
    catalog = data.catalog
    assert catalog.items.ids == ("a", "b", "c", "d") and list(catalog.modalities) == ["attributes"]
    assert catalog.encodings["genres"].settings() == {"values": ["Drama", "War"], "separator": " "}
    assert catalog.encodings["maker"].settings() == {"values": ["x y"], "separator": ""}
    assert catalog.encodings["used"].settings() == {"values": ["true"], "separator": ""}
    features = catalog["attributes"].features
    assert features[:, :4].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]
    assert features[:, 4:7].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert features[:, -3:].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert features[2, 7:-3].tolist() == [0] * 16 + [1], "its price is missing"
    assert catalog["attributes"].present.tolist() == [False, True, True, True, False], "of d nothing is told"
    assert catalog.attributes["genres"] == ["War", "Drama Noir", "War Drama", ""]


def test_rows_may_come_in_any_order_and_library() -> None:
    once = Dataset.from_frame(CLICKS, ITEMS, attributes=NAMES).catalog["attributes"].features
    arrow = [] if imported("pyarrow") is None else [ITEMS.to_arrow()]
    for items in (ITEMS.reverse(), ITEMS.lazy(), *arrow):
        assert torch.equal(Dataset.from_frame(CLICKS, items, attributes=NAMES).catalog["attributes"].features, once)


def test_frames_and_atomic_files_of_the_same_attributes_are_equal(tmp_path: Path) -> None:
    (tmp_path / "s.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\tb\t1\nu\ta\t2\nv\td\t3\n")
    rows = "item_id:token\tgenres:token_seq\tmaker:token\tprice:float\nc\tWar Drama\tx y\t3\na\tWar\t\t1\n"
    (tmp_path / "s.item").write_text(rows + "b\tDrama Noir\tx y\t\n")
    atomic = load_atomic(tmp_path, attributes=NAMES[:3]).catalog
    frame = Dataset.from_frame(CLICKS, ITEMS, attributes=NAMES[:3]).catalog
    assert atomic.encodings == frame.encodings
    assert torch.equal(atomic["attributes"].features, frame["attributes"].features)
    with pytest.raises(ValueError, match=r"'colour'.*genres"):
        load_atomic(tmp_path, attributes=["colour"])
    with pytest.raises(ValueError, match="'genres'"):
        load_atomic(tmp_path, attributes="genres")


def test_text_of_several_values_and_files_without_types(tmp_path: Path) -> None:
    items = ITEMS.with_columns(pl.col("genres").list.join("|")).drop("used")
    items.write_csv(tmp_path / "items.csv")
    CLICKS.write_csv(tmp_path / "clicks.csv")
    attributes = {"genres": "|", "maker": None, "price": None}
    read = Dataset.from_frame(tmp_path / "clicks.csv", tmp_path / "items.csv", attributes=attributes).catalog
    assert read.encodings["genres"].settings() == {"values": ["Drama", "War"], "separator": "|"}
    expected = Dataset.from_frame(CLICKS, ITEMS, attributes=NAMES[:3]).catalog["attributes"]
    assert torch.equal(read["attributes"].features, expected.features)


def test_codes_as_text_are_categories_and_lists_of_whole_numbers_too() -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "code": ["17", "17"], "tags": [[3, 4], [4]]})
    catalog = Dataset.from_frame(CLICKS, items, attributes=["code", "tags"]).catalog
    assert catalog.encodings["code"].settings()["values"] == ["17"]
    assert catalog.encodings["tags"].settings()["values"] == ["4"] and catalog.attributes["tags"][0] == "3 4"


@pytest.mark.parametrize(
    ("items", "asked", "told"),
    [
        (None, ["genres"], "items"),
        (ITEMS, ["colour"], "'colour'"),
        (ITEMS.with_columns(genres=pl.lit("2024-01-01").str.to_date()), ["genres"], "'genres'.*Date"),
        (ITEMS.with_columns(genres=[[1.5], [2.0], [3.0]]), ["genres"], "'genres'.*features="),
        (ITEMS.with_columns(maker=pl.Series(["p", "q", "r"])), ["maker"], "items.*'maker'.*3"),
        (ITEMS.with_columns(price=pl.Series([1.0, float("inf"), 2.0])), ["price"], "items.*'price'.*inf"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(items: Any, asked: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Dataset.from_frame(CLICKS, items, attributes=asked)


def test_names_must_be_names() -> None:
    with pytest.raises(TypeError, match="'genres'"):
        Dataset.from_frame(CLICKS, ITEMS, attributes="genres")
    with pytest.raises(ValueError, match="'attributes'"):
        Dataset.from_frame(CLICKS, ITEMS, attributes=["genres"], features={"attributes": np.eye(3)})
    with pytest.raises(ValueError, match="columns"):
        replace(SHOP.catalog, encodings={"price": SHOP.catalog.encodings["price"]})


def test_a_learner_of_attributes_alone_finds_items_that_nobody_had_clicked() -> None:
    """Where all users follow one rule, the cluster of the last item says the cluster of the next: 4 of 40 items."""
    data = mr.datasets.planted(users=600, items=40, adaptation=0)
    up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    up, down = world(up), world(down)
    learner = sasrec.build(up, ("attributes",), dim=16, layers=1, dropout=0.0)
    for _ in sasrec.train(learner, up, epochs=30, lr=1e-2):
        pass
    report = mr.evaluate(learner, down, k=(8,), exclude_seen=False)
    assert report.cold["recall@8"].mean > 0.8 and report.metrics["recall@8"].mean > 0.9


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_new_items_are_encoded_as_those_of_the_same_values(adapts: Any) -> None:
    model = lively(SHOP, replace(CONFIG, test_adapts=adapts))
    recommender = mr.Recommender(model)
    recommender.add_items(
        ["n0", "n1", "n2"], attributes={"cluster": ["3", ["no such cluster"], "3"], "price": [3.0, "1.5", None]}
    )
    rows = recommender.catalog["attributes"].features[-3:]
    twin = next(n for n in range(len(UP.catalog.items)) if n % 10 == 3 and n % 5 == 3 and n % 7)
    assert torch.equal(rows[0], recommender.catalog["attributes"].features[1 + twin])
    clusters = SHOP.catalog.encodings["cluster"].dim
    assert rows[1, -clusters:].tolist() == [0] * (clusters - 2) + [1, 0], "unseen"
    assert rows[2, :-clusters].tolist() == [0] * (rows.shape[1] - clusters - 1) + [1], "missing"
    assert recommender.catalog.attributes["cluster"][-3:] == ("3", "no such cluster", "3")
    assert recommender.catalog.attributes["price"][-3:] == ("3", "1.5", "")
    grown = recommender.model.learner("attributes").items
    assert torch.allclose(grown.table()[1 + twin], model.learner("attributes").items.table()[1 + twin])
    assert {"n0", "n1", "n2"} <= {r.id for r in recommender.adapt(["item3", "n1"]).recommend(k=41)} | {"n1"}
    before = recommender.model
    for wrong in ({"price": ["cheap"]}, {"price": [1, 2]}, {"price": {"n3": 1, "n9": 2}}, {"colour": ["red"]}):
        with pytest.raises(ValueError, match=r"price|colour"):
            recommender.add_items(["n3"], attributes=wrong)
    with pytest.raises(ValueError, match="'n3'"):
        recommender.add_items(["n3"], attributes={"cluster": [None]})
    assert recommender.model is before


def test_a_saved_model_goes_on_taking_in_items(tmp_path: Path) -> None:
    model = lively(SHOP, CONFIG)
    mr.save(model, tmp_path / "model.safetensors")
    again = mr.load(tmp_path / "model.safetensors")
    assert list(again.catalog.encodings.items()) == list(SHOP.catalog.encodings.items())
    new = {"cluster": ["4", "odd"], "price": [2, None]}
    lists = []
    for one in (model, again):
        recommender = mr.Recommender(one)
        recommender.add_items(["n0", "n1"], attributes=new)
        lists.append(recommender.adapt(["item3", "item14", "n0"]).recommend(k=30))
        recommender.save(tmp_path / "grown.safetensors")
        grown = mr.Recommender.load(tmp_path / "grown.safetensors")
        lists.append(grown.adapt(["item3", "item14", "n0"]).recommend(k=30))
    assert all(each == lists[0] for each in lists)


def test_a_file_whose_encodings_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mr.save(sasrec.build(SHOP, ("attributes",), dim=8), path)
    tensors, header = read_tensors(path)
    own = ["price", {"knots": [1.0]}]
    for said in (
        [own],
        [own, own],
        [["price", {"knots": None}]],
        [1],
        [["price", 3]],
        [[1, own[1]]],
        {"price": own[1]},
    ):
        write_tensors(path, tensors, {**json.loads(json.dumps(header)), "encodings": said})
        with pytest.raises(ValueError, match="model"):
            mr.load(path)
    write_tensors(path, tensors, {name: value for name, value in header.items() if name != "encodings"})
    assert mr.load(path).catalog.encodings == {}, "files of earlier versions have none"


def test_the_service_takes_attributes_of_new_items() -> None:
    with running(mr.Recommender(lively(SHOP, CONFIG)), allow_changes=True) as port:
        given = {"ids": ["n0"], "attributes": {"cluster": ["7"], "price": ["2.5"]}}
        status, answer = ask(port, "/items/add", given)
        assert status == 200, answer
        status, answer = ask(port, "/recommend", {"clicks": ["n0", "item3"], "k": 5})
        assert status == 200 and len(answer["items"]) == 5
        for wrong in ("cheap", {"a": 1}, [2.5], "\x00", 10**400, ["2", "3"]):
            assert ask(port, "/items/add", {**given, "ids": ["n1"], "attributes": {"price": [wrong]}})[0] == 422


def test_the_service_takes_values_of_every_type_as_the_library_does() -> None:
    new: dict[str, Any] = {"cluster": ["7", ["7"], None, "7"], "price": [2.5, "2.5", 3, None]}
    served, own = (mr.Recommender(lively(SHOP, CONFIG)) for _ in range(2))
    own.add_items(names := ["n0", "n1", "n2", "n3"], attributes=new)
    with running(served, allow_changes=True) as port:
        status, answer = ask(port, "/items/add", {"ids": names, "attributes": new})
        assert status == 200, answer
    there, here = (one.catalog["attributes"].features[-4:] for one in (served, own))
    assert torch.equal(there, here) and torch.equal(here[0], here[1])


def test_a_shop_with_attributes_only_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, epochs=4)
    data = mr.datasets.planted(users=220, items=40, adaptation=0)
    up, down = (world(side) for side in mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT))
    model = mr.fit(up)
    assert "attributes" in " ".join(model.members())
    assert mr.evaluate(model, down).metrics["recall@10"].mean > 0.3


def test_cold_items_are_generated_from_attributes() -> None:
    model = MML.build(SHOP, CONFIG)
    cold = torch.from_numpy(~SHOP.warm) & SHOP.catalog["attributes"].present
    assert bool(cold.any()) and bool(model.learner("id").items.known[cold].all())
