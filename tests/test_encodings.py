"""Encodings of attributes against loops over items, and their projection against averaged embeddings."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch_scatter
from torch import Tensor

from metarec.data.attributes import Column, encoded, fit_encodings
from metarec.data.encodings import Categories, Numbers, encoding_of
from metarec.functional import segment_mean


def tagged(seed: int, items: int = 60) -> list[list[str]]:
    """Items with none to four tags, frequent and rare ones."""
    rng = random.Random(seed)
    return [[f"tag {min(rng.randrange(12), rng.randrange(40))}" for _ in range(rng.randrange(5))] for _ in range(items)]


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_categories_are_those_of_a_loop(seed: int) -> None:
    cells = tagged(seed)
    encoding = Categories.of(cells)
    held = {tag: sum(tag in cell for cell in cells) for cell in cells for tag in cell}
    assert set(encoding.values) == {tag for tag, count in held.items() if count > 1}
    assert [held[value] for value in encoding.values] == sorted((held[v] for v in encoding.values), reverse=True)
    rows = encoding.rows([*cells, ["never seen"]])
    for row, cell in zip(rows, [*cells, ["never seen"]], strict=True):
        expected = [0.0] * encoding.dim
        for tag in set(cell):
            place = encoding.values.index(tag) if tag in encoding.values else len(encoding.values)
            expected[place] += 1 / len(set(cell))
        expected[-1] = float(not cell)
        assert row.tolist() == pytest.approx(expected)


def test_only_so_many_values_have_a_column() -> None:
    cells = [[f"v{n}"] for n in range(600) for _ in range(2)] + [["v599"]]
    encoding = Categories.of(cells)
    assert len(encoding.values) == 512 and encoding.values[0] == "v599" and encoding.dim == 514
    assert encoding.rows([["v598"], ["new"]]).argmax(1).tolist() == [512, 512]


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("War  Drama", ["War", "Drama"]),
        (["War", " Drama "], ["War", "Drama"]),
        (np.array(["War", "War"]), ["War"]),
        (("War", None, ""), ["War"]),
        ("  ", []),
        (None, []),
        (float("nan"), []),
        (True, ["true"]),
        (7, ["7"]),
    ],
)
def test_cells_of_every_form(cell: Any, values: list[str]) -> None:
    assert Categories(("War",), " ").split(cell) == values


def test_a_text_is_one_value_without_a_separator() -> None:
    assert Categories(("War",)).split("Science Fiction") == ["Science Fiction"]
    assert Categories(("War",), "|").split("Science Fiction|War") == ["Science Fiction", "War"]


def test_numbers_are_interpolated_between_quantiles_of_any_unit() -> None:
    rng = np.random.default_rng(0)
    given = rng.lognormal(size=200)
    encoding = Numbers.of([*given, None])
    assert encoding.knots == pytest.approx([np.percentile(given, 100 * n / 15) for n in range(16)])
    for number in [*given[:20], -5.0, 1e9]:
        row = encoding.rows([number])[0]
        inside = min(max(number, encoding.knots[0]), encoding.knots[-1])
        assert float(row[:-1].double() @ torch.tensor(encoding.knots).double()) == pytest.approx(inside, rel=1e-4)
        assert float(row.sum()) == pytest.approx(1) and int((row > 0).sum()) <= 2
    again = Numbers.of([1000 * number for number in given])
    torch.testing.assert_close(again.rows(1000 * given), encoding.rows(given), atol=1e-5, rtol=0)
    assert encoding.rows([None, float("nan"), "", "1.5"])[:, -1].tolist() == [1, 1, 1, 0]


def test_one_number_for_all() -> None:
    assert Numbers.of([3, 3.0, "3"]).rows([3, 8, None]).tolist() == [[1, 0], [1, 0], [0, 1]]


def test_attributes_stand_side_by_side_and_an_item_without_any_has_none() -> None:
    encodings, made = fit_encodings(
        {"genre": Column(["War", "War", None, None]), "price": Column([1, None, 2, None], numbers=True)}, "items"
    )
    assert list(encodings) == ["genre", "price"]
    assert made.features.shape == (5, 3 + 17) and made.present.tolist() == [False, True, True, True, False]
    assert made.features[4].tolist() == [0] * 20
    assert made.features[2, 3:].tolist() == [0] * 16 + [1], "one that is missing beside one that is not has a column"
    again = encoded(
        {name: encoding_of(each.settings()) for name, each in encodings.items()},
        {"genre": ["War", "War", None, None], "price": [1, None, 2, None]},
    )
    assert torch.equal(again.features, made.features)


@pytest.mark.parametrize("other", ["segment_mean", "torch_scatter"])
def test_a_projection_is_the_mean_of_embeddings_to_second_order(other: str) -> None:
    cells = [cell for cell in tagged(0) if cell]
    encoding = Categories.of(cells)
    rows = encoding.rows(cells).double()
    other_column = len(encoding.values)
    lists = [
        [encoding.values.index(v) if v in encoding.values else other_column for v in dict.fromkeys(cell)]
        for cell in cells
    ]
    index = torch.tensor([n for n, each in enumerate(lists) for _ in each])
    code = torch.tensor([place for each in lists for place in each])

    def mean(weight: Tensor) -> Tensor:
        if other == "segment_mean":
            return segment_mean(weight[code], index, len(cells))
        out: Tensor = torch_scatter.scatter(weight[code], index, 0, dim_size=len(cells), reduce="mean")
        return out

    found = []
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(encoding.dim, 3, generator=draw, dtype=torch.float64)
    for way in (lambda weight: rows @ weight, mean):
        weight = start.clone().requires_grad_()
        value = way(weight**3)
        (first,) = torch.autograd.grad((value**2).sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), weight)
        found.append((value.detach(), first.detach(), second))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (Column(["a", "b", None]), "items.*'genre'.* 2 "),
        (Column([None]), "items.*'genre'.* 0 "),
        (Column(["a", 3], numbers=True), "items.*'genre'.*'a'"),
        (Column([float("inf"), 3], numbers=True), "items.*'genre'.*inf"),
        (Column([None, ""], numbers=True), "items.*'genre'"),
    ],
)
def test_what_says_nothing_is_refused(column: Column, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit_encodings({"genre": column}, "items")


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"knots": "12"},
        {"knots": [2.0, 1.0]},
        {"knots": []},
        {"knots": [True]},
        {"knots": [float("nan")]},
        {"values": "ab", "separator": ""},
        {"values": ["a", "a"], "separator": ""},
        {"values": ["a", 3], "separator": ""},
        {"values": ["a"], "separator": None},
        {"values": ["a"]},
        {"knots": [1.0], "values": ["a"]},
    ],
)
def test_settings_that_make_no_encoding_are_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoding_of(said)
