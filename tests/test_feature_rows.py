"""Rows of features that are no features, and ids that are nearly those of the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import Catalog, Vocabulary, load_atomic
from metarec.data.features import load_modality
from metarec.encoders import encode_items
from metarec.recipes import MML
from metarec.recommender import Recommender
from tiny import CONFIG, UP

ITEMS = Vocabulary(["a", "b", "c"])


def npz(path: Path, ids: list[str], feat: list[list[float]]) -> Path:
    np.savez(path / "x.npz", ids=np.array(ids), feat=np.array(feat))
    return path / "x.npz"


def npy(path: Path, ids: list[str], feat: list[list[float]]) -> Path:
    np.save(path / "x.npy", np.array(feat))
    (path / "x.ids.txt").write_bytes(("\ufeff" + "\r\n".join([*ids, ""])).encode())
    return path / "x.npy"


def pth(path: Path, ids: list[str], feat: list[list[float]]) -> Path:
    torch.save({"item_id": ids, "embs": torch.tensor(feat)}, path / "x.pth")
    return path / "x.pth"


def table(path: Path, ids: list[str], feat: list[list[float]]) -> Path:
    rows = [f"{name}\t{' '.join(map(str, row))}" for name, row in zip(ids, feat, strict=True)]
    (path / "x.item").write_bytes("\r\n".join(["\ufeffitem_id:token\tx:float_seq", *rows]).encode())
    return path / "x.item"


FORMS = [npz, npy, pth, table]
Form = Callable[[Path, list[str], list[list[float]]], Path]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_are_missing_and_counted(tmp_path: Path, form: Form) -> None:
    x, dropped = load_modality("x", form(tmp_path, ["c", "a", "b"], [[0.0, 0.0], [0.0, 2.0], [-0.0, 0.0]]), ITEMS)
    assert x.present.tolist() == [False, True, False, False]
    assert dropped == {"x: rows of zeros": 2, "x: items without features": 2}
    with pytest.raises(ValueError, match=r"x\.\w+: .*missing"):
        load_modality("x", form(tmp_path, ["c", "zz"], [[0.0, 0.0], [1.0, 2.0]]), ITEMS)


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_order_mark_and_blanks_lose_no_item(tmp_path: Path, form: Form) -> None:
    x, dropped = load_modality(
        "x", form(tmp_path, ["a", " b", "c\t " if form is not table else "c "], [[1.0], [2.0], [3.0]]), ITEMS
    )
    assert (x.features.flatten().tolist(), dropped) == ([0, 1, 2, 3], {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [["a", "a "], ["a", " "]])
def test_ids_that_are_one_without_blanks_or_none(tmp_path: Path, form: Form, ids: list[str]) -> None:
    path = form(tmp_path, ids, [[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"x\.\w+: (row 1|line 3).*(already|stands on line 2|is empty)"):
        load_modality("x", path, ITEMS)


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_mostly_meet_nothing_are_warned_of(tmp_path: Path, form: Form) -> None:
    path = form(tmp_path, ["a", "B", "C"], [[1.0], [2.0], [3.0]])
    told = r"2 of 3 rows are of items .*, and 2 of 3 items .* look like 'B', .* like 'b': do both"
    with pytest.warns(UserWarning, match=told):
        load_modality("x", path, ITEMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a part of a larger catalogue, or of a smaller one, is nothing to be said
        load_modality("x", path, Vocabulary("a"))
        load_modality("x", form(tmp_path, ["a"], [[1.0]]), ITEMS)


def test_an_encoder_that_says_nothing_of_a_text_gives_no_features() -> None:
    def tail(texts: list[str], *, progress: bool | str = False) -> torch.Tensor:
        return torch.tensor([[float(len(text) - 1), 0.0] for text in texts])

    assert encode_items("x", ITEMS, {"a": "x", "b": "xyz"}, tail).present.tolist() == [False, False, True, False]


@pytest.mark.parametrize("wrong", ["", "tea\ud800", 3, None])
def test_ids_that_no_file_can_hold_are_refused_wherever_they_enter(wrong: str) -> None:
    told = rf"item id {wrong!r}".replace("\\", "\\\\") + " (is empty|holds a lone surrogate|is not a string)"
    with pytest.raises(ValueError, match=told):
        Vocabulary(["tea", wrong])
    recommender = Recommender(MML.build(UP, CONFIG))
    before = recommender.model.catalog.items
    vectors = np.ones((1, UP.catalog["text"].features.shape[1]))
    with pytest.raises(ValueError, match=told):
        recommender.add_items([wrong], text=vectors)
    assert recommender.model.catalog.items is before


def test_attributes_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attribute 'title' 'b\\udfff' .*surrogate"):
        Catalog(Vocabulary("ab"), attributes={"title": ["a\n", "b\udfff"]})


def test_an_added_item_of_zeros_alone_has_no_features() -> None:
    recommender = Recommender(MML.build(UP, CONFIG))
    with pytest.raises(ValueError, match=r"item 'new' .*modality"):
        recommender.add_items(["new"], text=np.zeros((1, UP.catalog["text"].features.shape[1])))


def test_what_is_left_out_and_what_stands_twice_is_in_the_repr(tmp_path: Path) -> None:
    rows = ["u\ta\t1", "u\ta\t1", "u\tb\t2", "v\ta\t1"]
    (tmp_path / "d.inter").write_text("\n".join(["user_id:token\titem_id:token\ttime:float", *rows]))
    told = repr(load_atomic(tmp_path, {"x": npz(tmp_path, ["a"], [[1.0]])}))
    assert told == (
        "Dataset(d: 4 interactions, 1 of them duplicates, 2 users, 2 items, modalities ['x'], "
        "left out {'x: items without features': 1})"
    )
