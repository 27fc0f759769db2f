"""Histories and ids in every container: by position, as in plain lists, or refused."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from metarec import MML, Recommender, Vocabulary
from metarec.data.containers import plain
from optional import imported
from tiny import CONFIG, UP

A, B = ["item3", "item14", "item15"], ["item7", "item8", "item9", "item14"]
TEXT, IMAGE = (UP.catalog[name].features for name in ("text", "image"))


class Labelled:
    """Iterates by position and indexes by label, as a pandas Series does."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.at = rows, dict(zip(reversed(range(len(rows))), rows, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __getitem__(self, label: int) -> Any:
        return self.at[label]


class ByLabelAlone:
    """What has no order of its own."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, label: int) -> list[str]:
        return [B, A][label]


Make = Callable[[list[str]], Any]
ONE: dict[str, Make] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "objects": lambda ids: np.array(ids, dtype=object),
    "strings": np.array,
    "numpy strings in a list": lambda ids: list(np.array(ids)),
    "dict values": lambda ids: dict(enumerate(ids)).values(),
    "dict keys": lambda ids: dict.fromkeys(ids).keys(),
    "generator": lambda ids: (name for name in ids),
    "map": lambda ids: map(str, ids),
    "labelled": Labelled,
    "polars": pl.Series,
    "polars categories": lambda ids: pl.Series(ids, dtype=pl.Categorical),
}
MANY: dict[str, Callable[[list[list[str]]], Any]] = {
    "list of tuples": lambda rows: [tuple(row) for row in rows],
    "objects": lambda rows: np.array([np.array(row) for row in rows] + [None], dtype=object)[:-1],
    "labelled": Labelled,
    "polars": pl.Series,
    "generator of generators": lambda rows: ((name for name in row) for row in rows),
    "dict values of polars": lambda rows: {n: pl.Series(row) for n, row in enumerate(rows)}.values(),
}


pd, pa = imported("pandas"), imported("pyarrow")
if pd is not None:
    ONE |= {
        "pandas": lambda ids: pd.Series(ids, index=range(len(ids))[::-1]),
        "pandas by label": lambda ids: pd.Series(ids, index=ids[::-1]),
        "pandas categories": lambda ids: pd.Series(ids, dtype="category"),
        "pandas strings": lambda ids: pd.Series(ids, dtype="string", index=range(7, 7 + len(ids))),
        "pandas index": pd.Index,
    }
    MANY |= {
        "pandas": lambda rows: pd.Series(rows, index=range(len(rows))[::-1]),
        "pandas by label": lambda rows: pd.Series([tuple(row) for row in rows], index=list("ba")),
        "pandas of pandas": lambda rows: pd.Series([pd.Series(row, index=row) for row in rows], index=[1, 0]),
    }
if pa is not None:
    ONE |= {
        "arrow": pa.array,
        "arrow chunks": lambda ids: pa.chunked_array([ids[:1], ids[1:]]),
        "arrow dictionary": lambda ids: pa.array(ids).dictionary_encode(),
        "arrow scalars": lambda ids: [pa.scalar(name) for name in ids],
    }
    MANY |= {
        "arrow": pa.array,
        "arrow chunks": lambda rows: pa.chunked_array([rows[:1], rows[1:]]),
        "arrow scalars": lambda rows: list(pa.array(rows)),
    }


@pytest.fixture(scope="module")
def model() -> MML:
    return MML.build(UP, CONFIG).eval()


@pytest.fixture
def recommender(model: MML) -> Recommender:
    return Recommender(model)


@pytest.mark.parametrize("kind", ONE)
def test_ids_of_one_user_and_of_items(kind: str, recommender: Recommender) -> None:
    make = ONE[kind]
    want = recommender.adapt(A)
    assert recommender.adapt(make(A)).history == tuple(A)
    assert recommender.adapt(A[:1]).update(make(A[1:])).history == tuple(A)  # type: ignore[union-attr]
    assert recommender.catalog.items.encode(make(B)).tolist() == [8, 9, 10, 15]
    lists = {"allow": B, "deny": B, "candidates": B}
    for name, ids in lists.items():
        assert want.recommend(k=3, **{name: make(ids)}) == want.recommend(k=3, **{name: ids}), name  # type: ignore[arg-type]
    recommender.remove_items(make(B[:3]))
    assert recommender.catalog.hidden == set(B[:3])
    recommender.restore_items(make(B[1:3]))
    assert recommender.catalog.hidden == {B[0]}
    recommender.add_items(make(["n0", "n1"]), text=TEXT[1:3])
    assert recommender.catalog.items.ids[-2:] == ("n0", "n1")
    assert all(type(name) is str for name in recommender.catalog.items.ids)


@pytest.mark.parametrize("kind", MANY)
def test_histories_of_many_users(kind: str, recommender: Recommender) -> None:
    make = MANY[kind]
    assert [user.history for user in recommender.adapt(make([A, B]))] == [tuple(A), tuple(B)]
    (piece,) = recommender.stream(make([A, B]))
    assert [user.history for user in piece] == [tuple(A), tuple(B)]
    users = recommender.adapt([A[:1], B[:1]])
    assert [user.history for user in users.update(make([A[1:], B[1:]]))] == [tuple(A), tuple(B)]
    found = users.recommend(k=1, candidates=make([["item20"], ["item21"]]))
    assert found.ids.tolist() == [["item20"], ["item21"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ann": A, "bob": B}, "got a dict, whose keys are labels; pass its values()"),
        ({"ann": A}.items(), "got a dict_items, whose keys are labels"),
        (set(A), "got a set, which has no order; pass a list"),
        (frozenset(A), "got a frozenset, which has no order"),
        (pl.DataFrame({"item3": A, "item4": A}), "got a DataFrame, a table; pass one of its columns"),
        (ByLabelAlone(), "expected a sequence of item ids, got <"),
        (7, "expected a sequence of item ids, got 7 (int)"),
        (None, "expected a sequence of item ids, got None"),
        (b"item3", "got the string b'item3'"),
        ([A, None], "user 1: expected a sequence of item ids, got None (NoneType)"),
        ([A, float("nan")], "user 1: expected a sequence of item ids, got nan (float)"),
        ([A, {"item3": 1}], "user 1: expected a sequence of item ids, got a dict"),
        ([A, set(B)], "user 1: expected a sequence of item ids, got a set"),
        ([A, "item3"], "got the string 'item3' as user 1"),
        ([("ann", A)], "unknown item id 'ann'"),
        ([["item3"], [["item3"]]], "user 1: item ids are strings, got ['item3'] of type list"),
    ],
)
def test_what_has_no_positions_is_refused(given: Any, message: str, recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recommender.adapt(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([3, 14], "got 3 of type int (at position 0); nearest known ids: 'item3', 'item13', 'item23'"),
        (np.array([39]), "got 39 of type int (at position 0); nearest known ids: 'item39'"),
        (torch.tensor([3]), "got 3 of type int (at position 0); nearest known ids: 'item3'"),
        (array("q", [3]), "got 3 of type int (at position 0); nearest known ids: 'item3'"),
        (pl.Series([3, 14]), "got 3 of type int (at position 0); nearest known ids: 'item3'"),
        (["item3", 14], "got 14 of type int (at position 1); nearest known ids: 'item14'"),
        ([14.0], "got 14.0 of type float (at position 0); nearest known ids: 'item14'"),
        ([b"item14"], "got b'item14' of type bytes (at position 0); nearest known ids: 'item14'"),
        ([None], "got None of type NoneType (at position 0); known ids look like ('item0', 'item1', 'item2')"),
        ([np.int64(3), np.int64(14)], "got 3 of type int (at position 0); nearest known ids: 'item3'"),
    ],
)
def test_ids_are_strings(given: Any, said: str, recommender: Recommender) -> None:
    message = re.escape(f"item ids are strings, {said}")
    asks: list[Callable[[], object]] = [
        lambda: recommender.adapt(given),
        lambda: recommender.adapt(A).update(given),
        lambda: recommender.adapt(A).recommend(k=1, candidates=given),
        lambda: recommender.adapt(A).recommend(k=1, allow=given),
        lambda: recommender.adapt(A).recommend(k=1, deny=given),
        lambda: recommender.remove_items(given),
        lambda: recommender.catalog.items.encode(given),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=message):
            ask()


def test_the_number_that_is_an_id_is_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 3 of type int \(at position 0\); nearest known ids: '3', '31', '103'"):
        Vocabulary(["103", "31", "7", "3"]).encode([3])  # type: ignore[list-item]


def test_a_string_is_no_sequence_of_ids() -> None:
    with pytest.raises(ValueError, match=r"item .*sequence.* 'ab'; write \['ab'\]"):
        Vocabulary("ab").encode("ab")


def test_sets_do_where_the_order_means_nothing(recommender: Recommender) -> None:
    user = recommender.adapt(A)
    assert user.recommend(k=2, allow=set(B)) == user.recommend(k=2, allow=B)
    assert user.recommend(k=2, allow=dict.fromkeys(B)) == user.recommend(k=2, allow=B)
    recommender.remove_items({"item1", "item2"})
    recommender.restore_items(name for name in ["item1"])
    assert recommender.catalog.hidden == {"item2"}
    with pytest.raises(ValueError, match=r"add_items: .* a set"):
        recommender.add_items({"n0", "n1"}, text=TEXT[1:3])  # type: ignore[arg-type]


def test_a_list_is_not_copied() -> None:
    assert plain(A, "") is A and plain(tuple(A), "") == tuple(A)


VECTORS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda rows: rows.tolist(),
    "generator": lambda rows: (row for row in rows),
    "labelled": lambda rows: Labelled(list(rows)),
    "polars frame": lambda rows: pl.DataFrame(rows),
    "polars lists": lambda rows: pl.Series(rows.tolist()),
    "by id": lambda rows: {"n1": pl.Series(rows[1]), "n0": tuple(rows[0])},
}
if pd is not None:
    VECTORS |= {
        "pandas frame": lambda rows: pd.DataFrame(rows, index=[1, 0]),
        "pandas frame by id": lambda rows: pd.DataFrame(rows, index=["n0", "n1"]),
        "pandas lists": lambda rows: pd.Series(rows.tolist(), index=[5, 4]),
    }
if pa is not None:
    VECTORS |= {
        "arrow lists": lambda rows: pa.array(rows.tolist()),
        "arrow table": lambda rows: pa.table({f"c{n}": column for n, column in enumerate(rows.T)}),
    }


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_of_new_items(kind: str, recommender: Recommender) -> None:
    recommender.add_items(["n0", "n1"], text=VECTORS[kind](TEXT[1:3].numpy()))
    assert torch.equal(recommender.catalog["text"].features[-2:], TEXT[1:3])


class Indexed(Labelled):
    """Rows under labels."""

    def __init__(self, rows: list[Any], index: list[Any]) -> None:
        super().__init__(rows)
        self.index = index


def test_rows_under_ids_in_another_order_are_refused(recommender: Recommender) -> None:
    message = r"rows are taken by position, but their index has the ids in another order, \['n1', 'n0'\]"
    rows, titles = list(TEXT[1:3].numpy()), ["one", "two"]
    for given in ({"text": Indexed(rows, ["n1", "n0"])}, {"text": TEXT[1:3], "attributes": {"title": titles}}):
        if "attributes" in given:
            given["attributes"] = {"title": Indexed(titles, ["n1", "n0"])}
        with pytest.raises(ValueError, match=message):
            recommender.add_items(["n0", "n1"], **given)  # type: ignore[arg-type]
    recommender.add_items(["n0", "n1"], text=Indexed(rows, ["n0", "n1"]))
    assert torch.equal(recommender.catalog["text"].features[-2:], TEXT[1:3])
