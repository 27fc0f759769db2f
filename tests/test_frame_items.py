"""Items in frames: titles, attributes and features of every form, against the atomic files of the same data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from frame_worlds import frame_of, parquet_of, random_rows, write_atomic
from metarec.data import Dataset, load_atomic
from optional import imported

ITEMS = pl.DataFrame(
    {
        "item_id": [f"n{n}é" for n in range(150)],
        "name": [f"film {n}" for n in range(150)],
        "year": [1990.0 + n if n % 3 else None for n in range(150)],
        "genres": [["a", "b"][: n % 3] for n in range(150)],
        "price": [n / 4 for n in range(150)],
        "sold": [n % 2 == 0 for n in range(150)],
        "about": [{"x": n} for n in range(150)],
        "vector": [[1.0 + n, 2.0] for n in range(150)],
    }
)


def test_items_with_titles_and_attributes_are_those_of_an_item_file(tmp_path: Path) -> None:
    frame = frame_of(random_rows(7, numbers=False))
    data = Dataset.from_frame(frame, ITEMS, features={"text": ITEMS["vector"].to_list()})
    (tmp_path / "d").mkdir()
    write_atomic(frame, tmp_path / "d" / "d.inter")
    lines = ["item_id:token\ttitle:token_seq\tyear:float\tgenres:token_seq\tsold:token\ttext:float_seq"]
    for row in ITEMS.iter_rows(named=True):
        year = "" if row["year"] is None else str(int(row["year"]))
        cells = [row["item_id"], row["name"], year, " ".join(row["genres"]), str(row["sold"]).lower()]
        lines.append("\t".join([*cells, " ".join(map(str, row["vector"]))]))
    (tmp_path / "d" / "d.item").write_text("\n".join(lines), encoding="utf-8")
    atomic = load_atomic(tmp_path / "d", modalities=["text"])
    assert data.catalog.items == atomic.catalog.items and len(data.catalog.items) == 150
    for name, column in atomic.catalog.attributes.items():
        assert list(data.catalog.attributes[name]) == list(column), name
    assert set(data.catalog.attributes) == {*atomic.catalog.attributes, "price"}
    assert data.catalog.attributes["price"][3] == str(
        ITEMS["price"][ITEMS["item_id"].to_list().index(data.catalog.items.ids[3])]
    )
    assert torch.equal(data.catalog["text"].features, atomic.catalog["text"].features)
    assert np.array_equal(data.warm, atomic.warm)
    assert dict(data.dropped) == {"items: columns that are not read": 2}


def test_values_with_blanks_are_kept_apart() -> None:
    items = pl.DataFrame({"item": ["a", "b"], "genres": [["Science Fiction", "War"], ["War"]]})
    data = Dataset.from_frame(pl.DataFrame({"user": [1], "item": ["b"], "time": [5]}), items)
    assert data.catalog.attributes["genres"] == ["Science Fiction|War", "War"]


def _as_frame(values: np.ndarray, ids: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"item": ids, **{f"c{n}": column for n, column in enumerate(values.T)}})


FEATURES: dict[str, Callable[[np.ndarray, list[Any], Path], Any]] = {
    "array": lambda values, ids, _: values,
    "float32": lambda values, ids, _: values.astype(np.float32),
    "tensor": lambda values, ids, _: torch.from_numpy(values),
    "lists": lambda values, ids, _: values.tolist(),
    "mapping": lambda values, ids, _: dict(zip(reversed(ids), values[::-1], strict=True)),
    "columns": lambda values, ids, _: _as_frame(values, ids).reverse(),
    "column of lists": lambda values, ids, _: pl.DataFrame({"item": ids, "v": values.tolist()}),
    "column of arrays": lambda values, ids, _: pl.DataFrame(
        {"item": ids, "v": pl.Series(values.tolist(), dtype=pl.Array(pl.Float64, values.shape[1]))}
    ),
    "parquet": lambda values, ids, folder: parquet_of(_as_frame(values, ids), folder),
}


def _npz(values: np.ndarray, ids: list[Any], folder: Path) -> Path:
    np.savez(folder / "v.npz", ids=np.array(ids, dtype=str), feat=values)
    return folder / "v.npz"


FEATURES["npz"] = _npz


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("numbers", [False, True], ids=["text", "numbers"])
def test_features_of_every_form(kind: str, numbers: bool, tmp_path: Path) -> None:
    ids: list[Any] = [30, 4, 100, 5] if numbers else ["c", "a", "d", "b"]
    values = np.arange(1.0, 13.0).reshape(4, 3)
    clicks = pl.DataFrame({"user": [1, 1, 2], "item": [ids[1], ids[0], 9 if numbers else "z"], "time": [1, 2, 3]})
    data = Dataset.from_frame(
        clicks, pl.DataFrame({"item": ids}), features={"text": FEATURES[kind](values, ids, tmp_path)}
    )
    text = data.catalog["text"]
    for code, name in enumerate(data.catalog.items.ids, 1):
        expected = values[ids.index(name)] if name in ids else np.zeros(3)
        assert text.features[code].tolist() == expected.tolist() and bool(text.present[code]) == (name in ids)
    assert data.dropped["text: items without features"] == 1


@pytest.mark.skipif(imported("pandas") is None, reason="without pandas")
def test_the_example_from_a_frame_to_ten_titles() -> None:
    folder = Path(__file__).parents[1] / "docs" / "examples"
    program = folder / "from_pandas.py"
    assert len([line for line in program.read_text(encoding="utf-8").splitlines() if line]) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**os.environ, "PYTHONPATH": str(folder.parents[1]), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    products = pl.read_csv(folder.parent / "data" / "frames" / "products.csv")
    for product, name in products.select("product_id", "name").iter_rows():
        assert (name in done.stdout) == (product not in (501, 502)) == (str(product) in done.stdout)
