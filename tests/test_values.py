"""The values that pass between packages refuse what would only fail later, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarec.data import Catalog, Dataset, Modality, Vocabulary
from metarec.types import EpisodeBatch, Examples

ITEMS = Vocabulary("abc")
TEXT = Modality("text", torch.arange(8.0).view(4, 2), torch.arange(4) > 0)
WIDER = Modality("text", torch.ones(2, 3), torch.arange(2) > 0)
CATALOG = Catalog(ITEMS, {"text": TEXT}, {"title": ["x", "y", "z"]})
DATA = Dataset(
    Vocabulary(["ann", "bob"], "user"),
    CATALOG,
    user=np.array([1, 1, 2]),
    item=np.array([3, 1, 3]),
    time=np.array([5, 8, 7]),
    warm=np.array([False, True, False, True]),
)
EXAMPLES = Examples(
    history=torch.tensor([[1, 2], [3, 1], [2, 0]]),
    position=torch.tensor([[0], [0], [0]]),
    target=torch.tensor([[2], [1], [3]]),
    negatives=torch.ones(3, 1, 1, dtype=torch.int64),
    weight=torch.ones(3, 1),
)
BATCH = EpisodeBatch(torch.tensor([4, 5, 6]), EXAMPLES, EXAMPLES)

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an id twice": (lambda: Vocabulary("aba"), "item id 'a' appears more than once"),
    "one vector for all": (lambda: replace(TEXT, features=torch.ones(4)), r"\(I,F\) and present \(I,\), got \(4,\)"),
    "presence of too few": (lambda: replace(TEXT, present=TEXT.present[1:]), r"got \(4, 2\) and \(3,\)"),
    "not finite": (
        lambda: replace(TEXT, features=torch.tensor([[0.0, 0], [1, 2], [3, torch.nan], [torch.inf, 0]])),
        "'text': feature of item code 2, column 1 is not finite",
    ),
    "rows for fewer items": (lambda: replace(CATALOG, items=Vocabulary("abcd")), "'text' has 4 rows, expected 5"),
    "titles of fewer items": (
        lambda: replace(CATALOG, attributes={"title": ["x"]}),
        "'title' has 1 values, expected 3",
    ),
    "an unknown hidden item": (lambda: replace(CATALOG, hidden=frozenset("ad")), "unknown item id 'd'"),
    "no such modality": (lambda: CATALOG["image"], r"no modality 'image'; it has \['text'\]"),
    "new items of another width": (
        lambda: CATALOG.add_items(
            Catalog(Vocabulary("d"), {"text": Modality("text", torch.ones(2, 3), torch.ones(2) > 0)})
        ),
        "'text': expected 2 columns, got 3",
    ),
    "a new item that is not new": (
        lambda: CATALOG.add_items(Catalog(Vocabulary("cd"))),
        "item id 'c' appears more than",
    ),
    "columns of different lengths": (lambda: replace(DATA, time=DATA.time[1:]), "one value per .* got 3, 3 and 2"),
    "users out of order": (lambda: replace(DATA, user=np.array([1, 2, 1])), "sorted .*time"),
    "times out of order": (lambda: replace(DATA, time=np.array([8, 5, 7])), "sorted .*time"),
    "warmth of fewer items": (lambda: replace(DATA, warm=DATA.warm[1:]), r"warm must have shape \(4,\), got \(3,\)"),
    "users of another batch": (lambda: replace(BATCH, user=BATCH.user[1:]), "same users, got 2, 3 and 3"),
    "queries of another batch": (lambda: replace(BATCH, query=EXAMPLES[:1]), "same users, got 3, 3 and 1"),
    "pieces of no size": (lambda: next(BATCH.chunks()), r"sizes .*least 1, got \(\)"),
    "pieces of nobody": (lambda: next(BATCH.chunks(2, 0)), r"sizes .*least 1, got \(2, 0\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_value_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_vocabularies_are_one_key() -> None:
    assert {Vocabulary("ab"): 1}[Vocabulary(["a", "b"], "user")] == 1
    assert Vocabulary("ab") != Vocabulary("ba")


@pytest.mark.parametrize(("sizes", "users"), [((1,), [[4], [5], [6]]), ((2, 1), [[4, 5], [6]]), ((9,), [[4, 5, 6]])])
def test_pieces_are_the_batch_in_order(sizes: tuple[int, ...], users: list[list[int]]) -> None:
    pieces = list(BATCH.chunks(*sizes))
    assert [piece.user.tolist() for piece in pieces] == users
    targets = torch.cat([piece.query.target for piece in pieces])
    assert torch.equal(targets, EXAMPLES.target)
