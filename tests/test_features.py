"""Every form of feature file gives the rows that were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from metarec.data import Vocabulary, load_atomic
from metarec.data.features import load_modality

ITEMS = Vocabulary(["a", "b", "c", "d"])
IDS = ["d", "a", "zz", "c"]
FEAT = np.array([[0.5, -1.25], [2.0, 3e-5], [7.0, 7.0], [1e-3, 4.0]])


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def _npz(path: Path) -> Path:
    np.savez(path / "text.npz", ids=np.array(IDS), feat=FEAT)
    return path / "text.npz"


def _npy_with_text(path: Path) -> Path:
    np.save(path / "text.npy", FEAT)
    table(path / "text.ids.txt", *IDS)
    return path / "text.npy"


def _npy_with_array(path: Path) -> Path:
    np.save(path / "text.npy", FEAT)
    np.save(path / "text.ids.npy", np.array(IDS))
    return path / "text.npy"


def _pth_by_item(path: Path) -> Path:
    torch.save({name: torch.from_numpy(row) for name, row in zip(IDS, FEAT, strict=True)}, path / "text.pth")
    return path / "text.pth"


def _pth_stacked(path: Path) -> Path:
    torch.save({"item_id": IDS, "embs": torch.from_numpy(FEAT)}, path / "text.pt")
    return path / "text.pt"


def _atomic(path: Path) -> Path:
    rows = [f"{name}\t{' '.join(map(repr, row.tolist()))}" for name, row in zip(IDS, FEAT, strict=True)]
    return table(path / "d.text", "item_id:token\ttxt_emb:float_seq", *rows)


def _tsv_among_others(path: Path) -> Path:
    rows = [f"0\t {row[0]}   {row[1]} \t{name}\t9" for name, row in zip(IDS, FEAT, strict=True)]
    return table(path / "text.tsv", "x:float\ttext:float_seq\titem_id:token\timage:float_seq", *rows, "0\t\tb\t9")


FORMS = [_npz, _npy_with_text, _npy_with_array, _pth_by_item, _pth_stacked, _atomic, _tsv_among_others]


@pytest.mark.parametrize("form", FORMS)
def test_rows_follow_the_item_ids(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    path = form(tmp_path)
    text, dropped = load_modality("text", path, ITEMS)
    assert text.features.dtype == torch.float32
    for code, name in enumerate(("", *ITEMS.ids)):
        written = FEAT[IDS.index(name)] if name in IDS else np.zeros(2)
        np.testing.assert_allclose(text.features[code].numpy(), written, rtol=1e-7, atol=0)
        assert bool(text.present[code]) == (name in IDS)
    assert dropped == {"text: rows of unknown items": 1, "text: items without features": 1}


@pytest.mark.parametrize("form", FORMS)
def test_load_atomic_finds_the_file(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    table(tmp_path / "d.inter", "user_id:token\titem_id:token", *(f"u\t{name}" for name in ITEMS.ids))
    path = form(tmp_path)
    expected, dropped = load_modality("text", path, ITEMS)
    data = load_atomic(tmp_path, ["text"])
    assert torch.equal(data.catalog["text"].features, expected.features)
    assert data.dropped == dropped
    path = path.rename(tmp_path / f"elsewhere{path.suffix}") if form in (_npz, _pth_stacked, _atomic) else path
    named = load_atomic(tmp_path, {"text": path})
    assert torch.equal(named.catalog["text"].features, expected.features)


def test_a_column_of_the_item_file(tmp_path: Path) -> None:
    table(tmp_path / "d.inter", "user_id:token\titem_id:token", *(f"u\t{name}" for name in ITEMS.ids))
    header = "item_id:token\tname:token\ttext:float_seq\timage:float_seq"
    table(tmp_path / "d.item", header, "c\tC\t1 2\t5", "e\tE\t3 4\t", "a\tA\t\t6")
    data = load_atomic(tmp_path, ("text", "image"))
    assert data.catalog["text"].features.tolist() == [[0, 0], [0, 0], [0, 0], [1, 2], [0, 0], [3, 4]]
    assert data.catalog["text"].present.tolist() == [False, False, False, True, False, True]
    assert data.catalog["image"].features[:, 0].tolist() == [0, 6, 0, 5, 0, 0]
    assert data.catalog.attributes == {"name": ["A", "", "C", "", "E"]}
    assert data.dropped == {"text: items without features": 3, "image: items without features": 3}


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_float_types_and_whole_number_ids(tmp_path: Path, kind: type) -> None:
    feat: NDArray[Any] = np.array([[0.1, 2], [3, 4]], dtype=kind)
    np.savez(tmp_path / "x.npz", ids=np.array([12, 7]), feat=feat)
    torch.save({12: torch.from_numpy(feat[0]), 7: torch.from_numpy(feat[1])}, tmp_path / "x.pth")
    torch.save({"item_id": torch.tensor([12, 7]), "embs": torch.from_numpy(feat)}, tmp_path / "x.pt")
    for file in ("x.npz", "x.pth", "x.pt"):
        features = load_modality("x", tmp_path / file, Vocabulary(["12", "7"]))[0].features
        assert torch.equal(features[1:], torch.from_numpy(feat).float())


def test_bfloat16_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([0.1, 2], dtype=torch.bfloat16)}, tmp_path / "x.pth")
    features = load_modality("x", tmp_path / "x.pth", ITEMS)[0].features
    assert torch.equal(features[1], torch.tensor([0.1, 2], dtype=torch.bfloat16).float())


def test_missing_files_say_what_was_looked_for(tmp_path: Path) -> None:
    table(tmp_path / "d.inter", "user_id:token\titem_id:token", "u\ta")
    looked = (
        r"text\.npz, text\.pth, text\.pt, text\.npy, d\.text, text\.item, text\.tsv and a column text:float_seq in d\."
    )
    with pytest.raises(FileNotFoundError, match=rf"modality 'text'; looked for {looked}item"):
        load_atomic(tmp_path, ["text"])
    with pytest.raises(FileNotFoundError, match=r"gone\.npz: .*feature.* \(modality 'text'\)"):
        load_atomic(tmp_path, {"text": tmp_path / "gone.npz"})
    np.save(tmp_path / "text.npy", FEAT)
    with pytest.raises(FileNotFoundError, match=r"text\.npy: needs .* in text\.ids\.txt .* or text\.ids\.npy"):
        load_atomic(tmp_path, ["text"])


@pytest.mark.parametrize("form", FORMS)
def test_only_unknown_items(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    with pytest.raises(ValueError, match=r"all 4 .*items .* look like 'd', those.* 'tt1'"):
        load_modality("text", form(tmp_path), Vocabulary(["tt1", "tt2"]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["txt:float_seq", "1 2"], r"no column 'item_id'"),
        (["item_id:token\ttxt:float_seq\ttxt:float_seq", "a\t1\t2"], r"column 'txt' appears twice"),
        (["item_id:token\ttxt:seq", "a\t1 2"], r"header column 'txt:seq' is not name:type"),
        (["item_id:token\ttxt:token_seq", "a\t1 2"], r"expected one float_seq column, or one called 'text', got none"),
        (["item_id:token\tx:float_seq\ty:float_seq", "a\t1\t2"], r"one called 'text', got \['x', 'y'\]"),
        (
            ["item_id:token\ttxt:float_seq", "a\t1 2", "b\t3 oops"],
            r"line 3, column 'txt': number 2 is 'oops', expected",
        ),
        (
            ["item_id:token\ttxt:float_seq", "a\t1,2"],
            r"line 2, column 'txt': number 1 is '1,2', expected finite numbers s",
        ),
        (["item_id:token\ttxt:float_seq", "a\t1 nan"], r"line 2, column 'txt': number 2 is 'nan'"),
        (["item_id:token\ttxt:float_seq", "a\t-inf 1"], r"line 2, column 'txt': number 1 is '-inf'"),
        (
            ["item_id:token\ttxt:float_seq", "b\t", "a\t1 2", "", "c\t1 2 3"],
            r"line 5, .*: 3 numbers, expected 2 as on line 3",
        ),
        (
            ["item_id:token\ttxt:float_seq", "a\t1 2", "a\t1 2"],
            r"line 3, column 'item_id': 'a' stands on line 2 already",
        ),
        (["item_id:token\ttxt:float_seq", "a\t1", "b"], r"line 3 has 1 tab-separated fields, expected 2"),
        (["item_id:token\ttxt:float_seq", "a\t"], r"column 'txt' holds no features"),
        (["item_id:token\ttxt:float_seq"], r"column 'txt' holds no features"),
    ],
)
def test_bad_atomic_features(tmp_path: Path, lines: list[str], message: str) -> None:
    path = table(tmp_path / "d.text", *lines)
    with pytest.raises(ValueError, match=message) as caught:
        load_modality("text", path, ITEMS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "feat", "message"),
    [
        (["a", "b"], [[1.0, 2], [3, np.nan]], r"row 1 \(item 'b'\), column 1: .*finite float32"),
        (["a", "b"], [[1.0, 2], [1e300, 3]], r"row 1 \(item 'b'\), column 0: 1e\+300 is not a finite float32"),
        (["a", "b", "a"], [[1.0], [2], [3]], r"row 2: item 'a' has a row already"),
        (["a"], [[1.0], [2]], r"1 ids for 2 rows of features"),
        (["a", "b"], [1.0, 2], r"expected features \(n,F\) .*float.* \(2,\)"),
        (["a", "b"], [[1], [2]], r"expected features \(n,F\) .*float.* \(2, 1\) of int64"),
        ([], np.zeros((0, 3)), r"expected features \(n,F\) .*float.* \(0, 3\)"),
    ],
)
def test_bad_arrays(tmp_path: Path, ids: list[str], feat: ArrayLike, message: str) -> None:
    np.savez(tmp_path / "x.npz", ids=np.array(ids), feat=np.array(feat))
    np.save(tmp_path / "x.npy", np.array(feat))
    table(tmp_path / "x.ids.txt", *ids)
    for file in ("x.npz", "x.npy")[: 2 if ids else 1]:
        with pytest.raises(ValueError, match=message):
            load_modality("x", tmp_path / file, ITEMS)


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, item=np.array(["a"]), feat=np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"x\.npz: .*must be called 'ids' and 'feat'; it has \['item', 'feat'\]"):
        load_modality("x", path, ITEMS)
    np.savez(path, ids=np.array(["a"], dtype=object), feat=np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"x\.npz: .*allow_pickle=False.*expected np\.savez.*dtype=str"):
        load_modality("x", path, ITEMS)
    np.savez(path, ids=np.array(["a"]), feat=np.ones((1, 2)))
    np.save(tmp_path / "y.npy", np.ones((1, 2)))
    for content in (b"", path.read_bytes()[:-40], (tmp_path / "y.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: cannot be read"):
            load_modality("x", path, ITEMS)


def test_npy_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    table(tmp_path / "x.ids.txt", "a")
    np.savez(tmp_path / "x.npz", ids=np.array(["a"]), feat=np.ones((1, 2)))
    np.save(path, np.array([["a"]], dtype=object))
    for content in (path.read_bytes(), b"", (tmp_path / "x.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npy: cannot be read"):
            load_modality("x", path, ITEMS)


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(2)], r"expected \{item_id: tensor \(F,\)\} or .* got a <class 'list'>"),
        (torch.ones(2), r"got a <class 'torch\.Tensor'>"),
        ({}, r"got an empty <class 'dict'>"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, r"item 'b': got shape \(3,\), expected .*long.* 'a'"),
        ({"a": torch.ones(1, 2)}, r"item 'a': got shape \(1, 2\)"),
        ({"a": [1.0, 2.0]}, r"item 'a': got list"),
        ({"item_id": ["a"], "embs": [[1.0, 2.0]]}, r"item 'item_id': .*tensor"),
        ({"item_id": ["a"], "embs": torch.ones(2, 2)}, r"1 ids for 2 rows"),
        ({"item_id": ["a"], "embs": torch.full((1, 2), torch.nan)}, r"row 0 \(item 'a'\), column 0: nan"),
        ({"a": torch.ones(2, dtype=torch.int64)}, r"of .*float.* \(1, 2\) of int64"),
    ],
)
def test_bad_torch_files(tmp_path: Path, held: object, message: str) -> None:
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        load_modality("x", tmp_path / "x.pth", ITEMS)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: cannot be read"):
        load_modality("x", tmp_path / "x.pth", ITEMS)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"x\.pth: cannot be read"):
        load_modality("x", tmp_path / "x.pth", ITEMS)
