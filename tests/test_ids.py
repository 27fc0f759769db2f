"""Ids that are whole numbers stay so through models, serving, observing and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from metarec import MML, Catalog, Dataset, Recommender, Vocabulary, load, save
from metarec.data.vocabulary import pack_ids, unpack_ids
from metarec.files import pack_strings, read_tensors, write_tensors
from metarec.recipes import Ensemble, LivePopularity
from metarec.recommendations import Recommendations
from tiny import CONFIG, UP

LARGE = 10**12


def number(name: str) -> int:
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz")) * 3 - 7


def numbered(data: Dataset) -> Dataset:
    """The same data under numbers for ids."""
    ids = [number(name) for name in data.catalog.items.ids]
    users = Vocabulary([number(name) + LARGE for name in data.users.ids], "user")
    titles = {"title": [f"film {name}" for name in ids]}
    return replace(data, users=users, catalog=Catalog(Vocabulary(ids), data.catalog.modalities, titles))


NUMBERED = numbered(UP)
A = ["item3", "item14", "item15"]
B = [number(name) for name in A]


@pytest.fixture
def both() -> tuple[Recommender, Recommender]:
    """The same model of ids of text and of numbers."""
    text, numbers = (Recommender(MML.build(data, CONFIG).eval()) for data in (UP, NUMBERED))
    return text, numbers


def test_lists_hold_numbers(both: tuple[Recommender, Recommender]) -> None:
    text, numbers = (recommender.adapt(ids) for recommender, ids in zip(both, (A, B), strict=True))
    lists = text.recommend(k=7), numbers.recommend(k=7)
    assert [number(entry.id) for entry in lists[0]] == [entry.id for entry in lists[1]]
    assert {type(entry.id) for entry in lists[1]} == {int} and numbers.history == tuple(B)
    for name in ("allow", "deny", "candidates"):
        chosen = numbers.recommend(k=2, **{name: np.array(B)}, exclude_seen=False)
        assert {type(entry.id) for entry in chosen} == {int}
    frame = numbers.users.recommend(k=3).to_frame()
    assert frame["item"].dtype == pl.Int64 and frame["item"].to_list() == [entry.id for entry in lists[1][:3]]
    assert frame["title"].to_list() == [f"film {entry.id}" for entry in lists[1][:3]]


def test_a_file_gives_numbers_back(both: tuple[Recommender, Recommender], tmp_path: Path) -> None:
    _, recommender = both
    recommender.remove_items(B[:2])
    recommender.add_items([LARGE, -5], text=UP.catalog["text"].features[1:3])
    users = recommender.adapt([B, [B[2], LARGE]])
    recommender.save(tmp_path / "model")
    users.save(tmp_path / "users")
    again = Recommender.load(tmp_path / "model")
    assert again.catalog.items.ids == recommender.catalog.items.ids and again.catalog.hidden == set(B[:2])
    assert set(map(type, again.catalog.items.ids)) == set(map(type, again.catalog.hidden)) == {int}
    assert again.load_users(tmp_path / "users").recommend(k=5).ids.tolist() == users.recommend(k=5).ids.tolist()


def test_users_of_numbers_go_on_after_a_file(tmp_path: Path) -> None:
    model = Ensemble({"popularity": LivePopularity(NUMBERED, window=60.0)}, NUMBERED)
    save(model, tmp_path / "model")
    recommender = Recommender(load(tmp_path / "model"))
    last, known = float(UP.time.max()), NUMBERED.users.ids[0]
    done = recommender.observe({"user": [known, 7], "item": B[:2], "time": [last + 1, last + 2]})
    assert done.new_users == (known, 7) and recommender.user(7).history == (B[1],)
    save(recommender.model, tmp_path / "again")
    assert Recommender(load(tmp_path / "again")).observe({"user": [7], "item": B[:1], "time": [last + 3]}).clicks == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["item3"], r"item ids are whole numbers, got 'item3' of type str"),
        (
            [str(B[0])],
            rf"item ids are whole numbers, got '{B[0]}' of type str \(at position 0\); nearest known ids: {B[0]}",
        ),
        ([10**9], r"unknown item id 1000000000 \(at position 0\)"),
        ([None], r"item ids are whole numbers, got None of type NoneType"),
        ([2.5], r"item ids are whole numbers, got 2.5 of type float"),
    ],
)
def test_other_ids_are_refused(given: list[Any], message: str, both: tuple[Recommender, Recommender]) -> None:
    with pytest.raises(ValueError, match=message):
        both[1].adapt(given)


def test_changes_in_another_type_are_refused(both: tuple[Recommender, Recommender]) -> None:
    text, numbers = both
    vector = UP.catalog["text"].features[1:2]
    with pytest.raises(ValueError, match=r"'5' .* whole number"):
        numbers.add_items(["5"], text=vector)
    with pytest.raises(ValueError, match="5 is not a string"):
        text.add_items([5], text=vector)
    with pytest.raises(ValueError, match=r"item '5' .* whole number"):
        numbers.observe({"user": ["u"], "item": ["5"], "time": [1e9]})
    with pytest.raises(ValueError, match="user True is not"):
        numbers.observe({"user": [True], "item": B[:1], "time": [1e9]})
    model = LivePopularity(NUMBERED, window=60.0)
    with pytest.raises(ValueError, match=rf"user id 'u' is str, .* {NUMBERED.users.ids[0]}, are int"):
        Recommender(model).observe({"user": ["u"], "item": B[:1], "time": [1e9]})


@pytest.mark.parametrize("ids", [[1, "a"], ["a", 1], [1, True], [1, 2.5], [1, None], [True], [1, 1], [[1]]])
def test_ids_of_several_types_make_no_vocabulary(ids: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Vocabulary(ids)


def test_numbers_of_numpy_are_numbers() -> None:
    vocabulary = Vocabulary(np.array([5, 3]))
    assert vocabulary.ids == (5, 3) and set(map(type, vocabulary.ids)) == {int} and vocabulary == Vocabulary([5, 3])


@pytest.mark.parametrize("ids", [[], ["a", "01"], [0, -1, 2**64, 7]])
def test_packed_ids_are_unpacked(ids: list[Any]) -> None:
    assert unpack_ids("x", pack_ids("x", ids)).ids == tuple(ids)


@pytest.mark.parametrize("text", ["", "01", "-0", "+1", "1.0", "x", " 1", "1 ", "\u0661", "--1", "1_0"])
def test_damaged_numbers_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole number"):
        unpack_ids("x", pack_strings("x.numbers", ["3", text]))
    save(MML.build(NUMBERED, CONFIG), tmp_path / "model")
    tensors, header = read_tensors(tmp_path / "model")
    texts = [text, *map(str, NUMBERED.catalog.items.ids[1:])]
    write_tensors(tmp_path / "model", {**tensors, **pack_strings("items.numbers", texts)}, header)
    with pytest.raises(ValueError, match=r"model: its contents .*whole number"):
        load(tmp_path / "model")


def test_lists_as_a_frame() -> None:
    scores = np.array([[0.5, 0.25], [0.5, -np.inf]], dtype=np.float32)
    lists = Recommendations(np.array([[2, 1], [1, 0]]), scores, Vocabulary("ab"), ["Alien", "Heat"])
    rows = [(0, 1, "b", "Heat", 0.5), (0, 2, "a", "Alien", 0.25), (1, 1, "a", "Alien", 0.5)]
    assert lists.to_frame().rows() == rows
    assert lists.to_frame().columns == ["user", "rank", "item", "title", "score"]
    assert lists.to_frame(["ann", "bob"])["user"].to_list() == ["ann", "ann", "bob"]
    assert [entry.id for entry in lists[0]] == [row[2] for row in rows[:2]]
    with pytest.raises(ValueError, match="name for each of 2 users, got 1"):
        lists.to_frame(["ann"])
    empty = Recommendations(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32), Vocabulary([2**64]))
    assert empty.to_frame().columns == ["user", "rank", "item", "score"] and not len(empty.to_frame())
    assert torch.tensor(lists.to_frame()["score"].to_list()).tolist() == [0.5, 0.25, 0.5]
