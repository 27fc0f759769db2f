"""Tables with room behind them, what is joined when it is asked for, and what is remembered of tensors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor

from metarec.data import Catalog, Modality, Vocabulary
from metarec.functional.appending import appended, roomy, side_by_side
from metarec.functional.neighbours import nearest_items
from metarec.functional.neighbours_of_added import nearest_of_added
from metarec.functional.remembering import Remembered

DRAW = torch.Generator().manual_seed(0)


def table(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (0, 2)])
def test_rows_come_after_those_that_are_there_and_nobody_elses_change(shape: tuple[int, int], by_column: bool) -> None:
    given = table(*shape)
    first = roomy(*shape, like=given, by_column=by_column).copy_(given)
    grown, expected = [first], [given]
    for _ in range(300):  # more than there is room for
        more = table(1, shape[1])
        grown.append(appended(grown[-1], more))
        expected.append(torch.cat([expected[-1], more]))
    for found, wanted in zip(grown, expected, strict=True):
        assert torch.equal(found, wanted)
    assert (grown[-1].stride(0) == 1) == (by_column or shape[1] == 1)


def test_two_that_follow_one_table_are_apart_and_equal_ones_are_one() -> None:
    first = side_by_side([table(4, 2), table(4, 1)])
    rows, others = table(2, 3), table(1, 3)
    one, again, other = appended(first, rows), appended(first, rows), appended(first, others)
    assert one is again and one.data_ptr() == first.data_ptr()
    assert other.data_ptr() != first.data_ptr()
    assert torch.equal(one, torch.cat([first, rows])) and torch.equal(other, torch.cat([first, others]))
    assert torch.equal(appended(one, others), torch.cat([first, rows, others]))


def test_adding_is_no_change_of_what_is_there() -> None:
    first = side_by_side([table(4, 2)])
    count = first._version
    second = appended(first, table(1, 2))
    third = appended(second, table(1, 2))
    assert first._version == second._version == third._version == count
    first[0] = 7.0  # is one of all that have it
    assert float(third[0, 0]) == 7 and third._version > count


def test_a_table_without_room_is_copied_and_copies_have_none() -> None:
    plain = table(3, 2)
    grown = appended(plain, table(1, 2))
    assert grown.data_ptr() != plain.data_ptr()
    for own in (copy.deepcopy(grown), pickle.loads(pickle.dumps(grown)), grown.clone()):
        longer = appended(own, table(1, 2))
        assert torch.equal(longer[:4], grown) and longer.data_ptr() != grown.data_ptr()


def test_rows_take_the_type_of_the_table() -> None:
    assert appended(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2)).dtype == torch.float64
    assert appended(torch.zeros(1, dtype=torch.int64), torch.ones(2)).tolist() == [0, 1, 1]


def test_features_of_a_larger_catalogue_are_joined_when_asked_for() -> None:
    given = Modality("text", table(4, 3) * (torch.arange(4) > 0).unsqueeze(1), torch.arange(4) > 0)
    news = [Modality("text", torch.cat([torch.zeros(1, 3), table(n, 3)]), torch.arange(n + 1) > 0) for n in (1, 2)]
    catalog = Catalog(Vocabulary("abc"), {"text": given}, {"title": ["x", "y", "z"]})
    more = catalog.add_items(Catalog(Vocabulary("d"), {"text": news[0]}, {"title": ["w"]}))
    most = more.add_items(Catalog(Vocabulary("ef"), {"text": news[1]}))
    bare = most.add_items(Catalog(Vocabulary("g")))
    assert "features" not in vars(bare["text"]) and bare["text"].dim == 3
    whole = torch.cat([given.features, news[0].features[1:], news[1].features[1:], torch.zeros(1, 3)])
    for first in range(8):
        assert torch.equal(bare["text"].rows_from(first), whole[first:])
    assert torch.equal(copy.deepcopy(bare)["text"].features, whole)
    assert torch.equal(bare["text"].features, whole) and torch.equal(most["text"].features, whole[:-1])
    assert bare["text"].present.tolist() == [False, *[True] * 6, False]
    assert bare.attributes["title"] == ("x", "y", "z", "w", "", "", "")
    assert [(name in bare.items, bare.items.encode([name]).tolist()) for name in "ag"] == [(True, [1]), (True, [7])]
    assert "g" not in most.items and len(catalog.items) == 3
    with pytest.raises(AttributeError, match="other"):
        _ = bare["text"].other  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [["c", "b"], [1], [""], ["x", "x"]])
def test_ids_that_cannot_follow_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match="id"):
        Vocabulary("ab").followed_by(Vocabulary(wrong))


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("added", [1, 7, 80])
def test_the_nearest_of_added_items_are_those_of_all_at_once(added: int, equal: bool) -> None:
    items, k = 400, 5
    draw = torch.Generator().manual_seed(added)
    both = [torch.randn(items + added, width, generator=draw) for width in (6, 9)]
    if equal:  # equally near ones, and some that are near to none
        both = [each[torch.randint(0, 40, (items + added,), generator=draw)] for each in both]
        both = [each * (torch.arange(items + added) % 7 > 0).unsqueeze(1) for each in both]
    allowed = (torch.rand(items + added, generator=draw) < 0.7) & (torch.arange(items + added) < items)
    allowed[0] = False
    found = nearest_of_added([each[:items] for each in both], both, allowed, k)
    assert torch.equal(found, nearest_items(torch.cat(both, 1), allowed, k, first=items))


def test_a_result_is_given_again_for_the_same_tensors_alone_and_lives_as_long() -> None:
    first, second, calls = table(2), table(2), list[int]()

    def make() -> Tensor:
        calls.append(1)
        return table(1)

    remembered: Remembered[Tensor] = Remembered()
    one = remembered.of([first, second], "a", make)
    assert remembered.of([first, second], "a", make) is one and len(calls) == 1
    assert remembered.of([first, second.clone()], "a", make) is not one
    assert remembered.of([first, second], "b", make) is not one and len(calls) == 3
    gone = weakref.ref(remembered.of([first, second], "b", make))
    del first
    gc.collect()
    assert gone() is None
